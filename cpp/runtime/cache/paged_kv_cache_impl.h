/*!
 * \file runtime/cache/paged_kv_cache_impl.h
 * \brief TVM's interface of a paged KV cache and kvctl's, over the parts that do the work.
 */
#ifndef KVCTL_RUNTIME_CACHE_PAGED_KV_CACHE_IMPL_H_
#define KVCTL_RUNTIME_CACHE_PAGED_KV_CACHE_IMPL_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/cache/sequence_table.h"
#include "kvctl/paged_kv_cache.h"
#include "runtime/cache/backend/cache_backend.h"
#include "runtime/cache/evict_tokens.h"
#include "runtime/cache/step/attention_hooks.h"
#include "runtime/cache/step/forward_step.h"
#include "runtime/cache/step/key_rotator.h"
#include "runtime/cache/transfer/sequence_transfer.h"
#include "runtime/support/exclusive_scope.h"
#include "runtime/support/guard.h"
#include "runtime/support/step_partner.h"

namespace kvctl {

/*!
 * \brief The cache: its lock, its sequence table, and its parts.
 *
 * Every method takes the lock and calls one part. The documentation of the methods is that of
 * PagedKVCacheObj and of TVM's kv_state.h.
 */
class PagedKVCacheImpl final : public PagedKVCacheObj {
 public:
  using Shape = tvm::ffi::Shape;
  using String = tvm::ffi::String;
  using Tensor = tvm::runtime::Tensor;

  explicit PagedKVCacheImpl(const PagedKVCacheConfig& config);
  ~PagedKVCacheImpl() { device_.Note(); }

  // KVState.
  void Clear() final;
  void AddSequence(int64_t seq_id) final;
  void RemoveSequence(int64_t seq_id) final;
  void ForkSequence(int64_t parent, int64_t child, int64_t position) final;
  void PopN(int64_t seq_id, int32_t n) final;
  void BeginForward(const Shape& seq_ids, const Shape& append_lengths,
                    const tvm::ffi::Optional<Shape>& parents) final;
  void EndForward() final;

  // AttentionKVCache: queries.
  bool Empty() const final;
  int32_t GetNumAvailablePages() const final;
  int32_t GetTotalSequenceLength() const final;
  int32_t GetSequenceLength(int64_t seq_id) const final;
  Tensor GetQueryPositions() final;

  // AttentionKVCache: sequences.
  void EnableSlidingWindowForSeq(int64_t seq_id, int32_t window, int32_t sinks) final;
  void CommitAcceptedTokenTreeNodes(const Shape& seq_ids, const Shape& leaf_indices) final;
  Shape DisaggPrepareRecv(int64_t seq_id, int length) final;
  void DisaggMarkSend(int64_t seq_id, int64_t begin, const Shape& map, int32_t offset) final;

  // AttentionKVCache: attention.
  void AttentionWithFusedQKV(int64_t layer_id, Tensor qkv, tvm::ffi::Optional<Tensor> mask,
                             Tensor out, double sm_scale) final;
  void SelfAttention(int64_t layer_id, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                     double sm_scale) final;
  void CrossAttention(int64_t layer_id, Tensor q, Tensor out, Tensor lse, double sm_scale) final;
  void AttentionWithSharedKV(int64_t source_layer_id, Tensor q, Tensor k, Tensor v, Tensor out,
                             double sm_scale) final;
  void AppendMLAKV(int64_t layer_id, Tensor kv) final;
  tvm::ffi::Array<Tensor> MergeAttnOutputInplace(Tensor out1, Tensor lse1, Tensor out2,
                                                 Tensor lse2) final;
  void LinearAttention(int64_t layer_id, Tensor q, Tensor k, Tensor v, double sm_scale) final;

  // AttentionKVCache: transfer to other processes.
  String GetCheckpointMetadata(int64_t seq_id) const final;
  String GetLayoutHash() const final;
  void ExportPageGroup(int64_t seq_id, int64_t group_id, Tensor dst) final;
  void PrepareImport(int64_t seq_id, String metadata_json) final;
  void ImportPageGroup(int64_t seq_id, int64_t group_id, Tensor src) final;
  void FinishImport(int64_t seq_id) final;

  // AttentionKVCache: debugging.
  void DebugGetKV(int64_t seq_id, int64_t begin, int64_t end, Tensor k, Tensor v) final;
  void DebugGetKVMLA(int64_t seq_id, int64_t begin, int64_t end, Tensor kv) final;
  void DebugSetKV(int64_t seq_id, int64_t begin, Tensor k, Tensor v) final;

  // PagedKVCacheObj.
  void BeginForward(const std::vector<StepRequest>& requests) final;
  void AbortForward() final;
  void Attention(int64_t layer, const Tensor& qkv, const Tensor& out, double sm_scale,
                 const AttentionOptions& options) final;
  bool AttentionInPlace(int64_t layer, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Tensor& out, double sm_scale, const AttentionOptions& options) final;
  void SetPageSelector(tvm::ffi::Optional<tvm::ffi::Function> select) final;
  void SetObserver(tvm::ffi::Optional<tvm::ffi::Function> observer,
                   const ObserverOptions& options) final;
  void DropPending(int64_t seq_id) final;
  void DropPending(const std::optional<std::vector<int64_t>>& seq_ids) final;
  bool InForward() const final;
  void Commit(const std::vector<int64_t>& seq_ids,
              const std::vector<std::vector<int32_t>>& kept) final;
  void CommitAnyNodes(const std::vector<int64_t>& seq_ids,
                      const std::vector<std::vector<int32_t>>& kept) final;
  void Pop(int64_t seq_id, int64_t n) final;
  void SetSlidingWindow(int64_t seq_id, int64_t size, int64_t sinks, int64_t horizon,
                        bool renumber_sinks) final;
  void SetDefaultWindow(int64_t size, int64_t sinks, int64_t horizon, bool renumber_sinks) final;
  void Evict(int64_t seq_id, const std::vector<int32_t>& keep, bool rerotate) final;
  SavedSequence SaveSequence(int64_t seq_id) const final;
  void LoadSequence(int64_t seq_id, const SavedSequence& saved) final;
  CacheCheckpoint MakeCheckpoint(int64_t seq_id) final;
  void Rollback(int64_t seq_id, const CacheCheckpoint& checkpoint) final;
  const PagedKVCacheConfig& config() const final { return config_; }
  bool HasSequence(int64_t seq_id) const final;
  bool HasWindow(int64_t seq_id) const final;
  std::vector<int64_t> SequenceIds() const final;
  int64_t PendingLength(int64_t seq_id) const final;
  std::vector<int64_t> PageIds(int64_t seq_id) const final;
  int64_t KVLength(int64_t seq_id) const final;
  Tensor LayerPages(int64_t layer) final;
  void ForgetGraphs() final;
  GraphState ReadGraphState() const final;
  UploadState ReadUploads() const final;
  int64_t CountSaturated() const final;
  void PoisonUnused() final;

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.PagedKVCacheImpl", PagedKVCacheImpl, PagedKVCacheObj);

 private:
  friend class CacheCheckpointImpl;

  /*!
   * \brief Runs f as the only caller, errors translated; a second caller at the same time is
   * refused.
   *
   * What closes a step or takes something back waits for the other thread instead: refused, it
   * would leave behind what it was called to clean up.
   */
  template <typename F>
  auto WithLock(F&& f, WhenBusy when_busy = WhenBusy::kRefuse) const {
    return Guard([&] {
      ExclusiveScope scope(&user_,
                           "the cache is in use by another thread, or by the call that this "
                           "callback belongs to; one at a time",
                           when_busy);
      DestroyDiscarded();
      return std::forward<F>(f)();
    });
  }
  /*! \brief Destroys a checkpoint: at once, or in the next call if another caller uses the cache.
   */
  void Discard(CheckpointPtr checkpoint) const;
  void DestroyDiscarded() const;
  /*! \brief Calls change(CopyPlan*), and then copies the K and V that it asks for. */
  template <typename F>
  void Change(F&& change);
  /*!
   * \brief Calls begin(CopyPlan*), which begins step_, and prepares the backend.
   * \param lengths Returns what the step will append to which sequences, `before` left empty.
   */
  template <typename L, typename F>
  void BeginStep(L&& lengths, F&& begin);

  KeepCurrentDevice device_;  // first: its destructor runs after those that free device memory
  const PagedKVCacheConfig config_;
  SequenceTable table_;
  KeyRotator rotator_;
  AttentionHooks hooks_;
  ForwardStep step_;
  const std::unique_ptr<CacheBackend> backend_;
  SequenceTransfer transfer_;
  StepPartner partner_{StepPartner::Kind::kCache};
  CopyPlan copies_;                          // of the operation in progress, kept for its memory
  std::vector<std::vector<int32_t>> paths_;  // of a commit, kept for its memory
  mutable ObjectUser user_{std::thread::id()};
  mutable std::mutex discarded_mutex_;
  mutable std::vector<CheckpointPtr> discarded_;
  mutable std::atomic<bool> has_discarded_{false};  // read without the mutex
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_PAGED_KV_CACHE_IMPL_H_
