/*!
 * \file runtime/cache/paged_kv_cache_impl.h
 * \brief PagedKVCacheObj: core's sequence table over pages that lie in TVM tensors.
 */
#ifndef KVCTL_RUNTIME_CACHE_PAGED_KV_CACHE_IMPL_H_
#define KVCTL_RUNTIME_CACHE_PAGED_KV_CACHE_IMPL_H_

#include <atomic>
#include <deque>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/cache/sequence_table.h"
#include "core/mask/mask_plan.h"
#include "kernels/attention.h"
#include "kernels/kv_copy.h"
#include "kernels/rope.h"
#include "kvctl/paged_kv_cache.h"
#include "runtime/support/device.h"
#include "runtime/support/exclusive_scope.h"
#include "runtime/support/guard.h"

namespace kvctl {

class PagedKVCacheImpl final : public PagedKVCacheObj {
 public:
  using Shape = tvm::ffi::Shape;
  using String = tvm::ffi::String;
  using Tensor = tvm::runtime::Tensor;

  explicit PagedKVCacheImpl(const PagedKVCacheConfig& config);

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

  // AttentionKVCache: checkpoints to other processes.
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
  void SetPageSelector(tvm::ffi::Optional<tvm::ffi::Function> select) final;
  void SetObserver(tvm::ffi::Optional<tvm::ffi::Function> observer,
                   const ObserverOptions& options) final;
  void DropPending(int64_t seq_id) final;
  void DropPending(const std::optional<std::vector<int64_t>>& seq_ids) final;
  bool InForward() const final;
  void Commit(const std::vector<int64_t>& seq_ids,
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
  void PoisonUnused() final;

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.PagedKVCacheImpl", PagedKVCacheImpl, PagedKVCacheObj);

 private:
  friend class CacheCheckpointImpl;

  /*! \brief A sequence that comes in page groups, layer by layer, until it is complete. */
  struct Import {
    int64_t seq_id;
    int64_t length;
    std::vector<Tensor> layers;  // K and V (2, length, num_kv_heads, head_dim); undefined: not yet
  };

  /*! \brief Runs f as the only caller, errors translated; a second caller at the same time is
   * refused. */
  template <typename F>
  auto WithLock(F&& f) const {
    return Guard([&] {
      ExclusiveScope scope(&busy_,
                           "the cache is in use by another thread, or by the call that this "
                           "callback belongs to; one at a time");
      DestroyDiscarded();
      return std::forward<F>(f)();
    });
  }
  /*! \brief Destroys a checkpoint: at once, or in the next call if another caller uses the cache.
   */
  void Discard(CheckpointPtr checkpoint) const;
  void DestroyDiscarded() const;

  SlidingWindow MakeWindow(int64_t size, int64_t sinks, int64_t horizon, bool renumber_sinks) const;
  int32_t LocalLayer(int64_t layer_id) const;
  /*! \brief Begins the step that requests_ describes. */
  void Begin();
  /*! \brief Keeps the sequences' masks, with their windows and those of the layers, in step_masks_
   * and, what is seen of renumbered sinks, in sink_masks_. */
  void KeepMasks();
  /*! \brief Takes the renumbered sinks of one sequence out of its mask. */
  void SetSinksApart(size_t index, Mask* mask);
  /*! \brief Positions of the step's rows as they look at renumbered sinks. */
  void FillSinkRotation();
  /*! \brief A layer without K and V of the step's tokens where others have them, or -1. */
  int64_t FirstUnwrittenLayer() const;
  /*! \brief Carries out the data moves of the last operation on the table. */
  void ApplyCopies();

  /*! \brief Which columns of its sequence a new token looks at. */
  enum class Columns { kAll, kPast, kNew };
  /*! \brief The masks of a step, restricted to some of the columns. */
  struct StepMasks {
    MaskTable masks;
    MaskTable sinks;
    bool lowered = false;  // for this step
  };
  /*! \brief The new tokens' rows of one layer, rotated where the cache rotates. */
  struct QKVRows {
    KVRows q, k, v;
    KVRows plain_k;     // before it was rotated
    KVRows q_at_sinks;  // as it looks at sinks that are renumbered
  };
  /*! \brief Positions of some rows, and what their rotation needs. */
  struct Rotation {
    Tensor positions;                  // [prefill_chunk_size] int32
    std::unique_ptr<RopeTable> table;  // null unless the cache rotates by itself
    Tensor q, k, v;                    // [prefill_chunk_size, heads, head_dim]: rotated rows
  };

  void CreateRotation(Rotation* rotation) const;
  void FillRotation(const int32_t* positions, int32_t num_rows, Rotation* rotation) const;
  /*! \brief The first rows out of a (rows, num_qo_heads + 2 * num_kv_heads, head_dim) tensor,
   * rotated.
   */
  QKVRows Rotate(const Tensor& qkv, int64_t num_rows, Rotation* rotation) const;
  /*! \brief The new tokens' rows. */
  QKVRows RotateStep(const Tensor& qkv);
  /*! \brief The same of separate tensors, which are taken as they are unless RoPE is inline. */
  QKVRows RotateParts(const Tensor& q, const tvm::ffi::Optional<Tensor>& k,
                      const tvm::ffi::Optional<Tensor>& v);
  /*! \brief Throws where the cache cannot turn keys to other positions. */
  void CheckRotatesKeys(const char* operation);
  /*! \brief Turns keys of all layers in place, where kvctl's rotation was applied to them. */
  void RotateKeys(const std::vector<KeyRotation>& rotations);
  /*! \brief (1, count, num_kv_heads, head_dim), of the pages' type. */
  Tensor EmptyKeys(size_t count) const;
  /*! \brief Keys to try a rotation on, all alike. */
  Tensor TrialKeys(size_t count) const;
  /*! \brief Rotates keys of some layer; in a model library's function, which may throw. */
  Tensor RotatedKeys(const std::vector<int32_t>& positions, const KVRows& keys);
  /*! \brief Why keys that the model library rotated cannot be turned, or "". */
  std::string LibraryProblem();
  /*! \brief Throws unless the library's rotations `from` and then `by` are its rotation `to`. */
  void CheckLibraryRotations(const std::vector<int32_t>& from, const std::vector<int32_t>& by,
                             const std::vector<int32_t>& to);
  /*!
   * \brief Of each layer the kept keys that change positions, as they will be.
   * \throws Error kNotImplemented if that takes more than a rotation.
   */
  std::vector<Tensor> RotatedKeptKeys(int64_t seq_id, const std::vector<int32_t>& keep);
  /*! \brief Writes them where the last operation on the table has put their columns. */
  void WriteRotatedKeys(const std::vector<Tensor>& keys);
  /*! \brief Writes the new tokens' K and V of a layer into their slots. */
  void AppendKV(int32_t layer, const QKVRows& rows);

  /*! \brief One run of the kernel for attention to columns that lie in the layer's pages, and one
   * for sinks that are renumbered. */
  void AddPages(int32_t layer, const QKVRows& rows, Columns columns,
                std::vector<AttentionArgs>* runs);
  /*! \brief The same for the new columns, whose K and V are given. */
  void AddRows(int32_t layer, const QKVRows& rows, std::vector<AttentionArgs>* runs);
  /*! \brief Carries out attention over disjoint columns and merges what comes out. */
  void Attend(std::vector<AttentionArgs>* runs, const Tensor& out, double sm_scale,
              const AttentionOptions& options);
  /*! \brief Attend, whose lse is TVM's: in base 2, and finite where a row sees nothing. */
  void AttendInBase2(std::vector<AttentionArgs>* runs, const Tensor& out, const Tensor& lse,
                     double sm_scale);
  /*! \brief The masks of the step, restricted to some of the columns. */
  StepMasks& MasksOf(Columns columns);
  int64_t RequireForward() const;
  /*! \brief Checks a (rows, num_heads, head_dim) tensor with exactly the step's rows. */
  void CheckRows(const Tensor& rows, const char* name, int64_t num_heads) const;
  /*! \brief Whether attention to what is in the cache sees the layer's new tokens: TVM writes those
   * of a decode step before it attends, and those of a chunk after. */
  bool SeesNewTokens(int32_t layer) const;
  /*! \brief Asks the selector, and hides the pages that it leaves out. */
  void SelectPages(int32_t layer, const void* q, DType dtype, int64_t q_row_stride);
  /*! \brief The pages of a sequence, -1 in place of those that were not chosen. */
  const int32_t* Chosen(const SequencePlan& sequence, const Shape& pages);
  [[noreturn]] static void RefuseToObserve();
  /*! \brief Attend, and sums of what it gave to each column for those who asked. */
  void AttendObserved(int64_t layer_id, std::vector<AttentionArgs>* runs, const Tensor& out,
                      double sm_scale, const AttentionOptions& options);
  /*! \brief The data of a float32 tensor of an option, nullptr where it is not given. */
  float* PerHead(const tvm::ffi::Optional<Tensor>& tensor, const char* name,
                 std::initializer_list<int64_t> shape) const;
  /*! \brief A view of a buffer of at most prefill_chunk_size rows, made where it is not yet. */
  Tensor Scratch(Tensor* buffer, int64_t num_rows, int64_t num_heads, DLDataType dtype) const;
  /*! \brief Reads K and V of slots of one layer; with inline RoPE k as it came. */
  void ReadLayer(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                 const KVRows& v) const;
  /*! \brief Writes them; inline RoPE keeps k as it is given and rotated (elsewhere undefined). */
  void WriteLayer(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                  const KVRows& v, const Tensor& rotated_k);
  /*! \brief Reads K and V of slots, all layers, as (num_layers, slots, num_kv_heads, head_dim). */
  void ReadSlots(const std::vector<int32_t>& slots, const Tensor& k, const Tensor& v) const;
  /*! \brief Writes them; with inline RoPE, which keeps k as it is given, k's positions count. If
   * the model library's rotation throws, nothing has been written. */
  void WriteSlots(const std::vector<int32_t>& slots, const std::vector<int32_t>& positions,
                  const Tensor& k, const Tensor& v);
  std::vector<int32_t> Slots(int64_t seq_id, int64_t begin, int64_t end) const;
  /*! \brief The slots of all committed tokens that no window has let go. */
  std::vector<int32_t> HeldSlots(int64_t seq_id) const;
  void CheckKV(const Tensor& kv, const char* what, int64_t length) const;
  /*! \brief The length of a sequence that page groups can describe: committed, whole, in order. */
  int64_t LengthForExport(int64_t seq_id) const;
  /*! \brief Checks a group of so many tokens, (1, pages, 2, num_kv_heads, page_size, head_dim). */
  void CheckPageGroup(const Tensor& group, int64_t group_id, int64_t length) const;

  // On a CUDA device: paged_kv_cache_cuda.cc. What is not there is refused.
  void CreateOnCuda();
  void BeginOnCuda();
  void AttendOnCuda(int32_t layer, const Tensor& qkv, int64_t num_rows, const Tensor& out,
                    double sm_scale, const AttentionOptions& options);
  void PoisonOnCuda(const std::vector<bool>& used);

  PagedKVCacheConfig config_;
  PageShape page_shape_;
  SequenceTable table_;
  std::vector<Tensor> pages_;        // one per layer
  std::unique_ptr<CudaCache> cuda_;  // null on the CPU
  // With inline RoPE the keys as they came, (num_pages, 1, num_kv_heads, page_size, head_dim):
  // those in pages_ are rotated once, instead of each time that they are read.
  std::vector<Tensor> plain_keys_;
  PageShape plain_key_shape_;
  // Of the step: one mask per sequence, nullopt: causal. The second is empty, or has what rows see
  // of renumbered sinks, which the first then leaves out.
  std::vector<std::optional<Mask>> step_masks_;
  std::vector<Mask> sink_masks_;
  StepMasks all_, past_, new_;
  std::vector<const Mask*> mask_pointers_;
  std::vector<bool>
      appended_;           // [num_layers] whether K and V of the step's tokens are in the pages
  bool in_parts_ = false;  // whether the step has called attention in parts
  AttentionWorkspace workspace_;
  Rotation step_rotation_;
  Rotation sink_rotation_;                      // of q for renumbered sinks
  Rotation key_rotation_;                       // of keys that are set from outside
  std::optional<std::string> library_problem_;  // once it has been looked for
  Tensor fused_;   // [prefill_chunk_size, all heads, head_dim]: rows that came apart
  Tensor new_kv_;  // [prefill_chunk_size, 2, num_kv_heads, 1, head_dim]: K and V that were given
  std::vector<SequencePlan> new_sequences_;      // of the step, over new_kv_
  std::vector<std::vector<int32_t>> new_pages_;  // what they point to
  struct {
    std::vector<float> out, lse;
  } merged_, part_;  // of attention in several runs
  tvm::ffi::Optional<tvm::ffi::Function> select_;
  std::deque<std::vector<int32_t>> chosen_pages_;  // of the last call, as it was answered
  std::vector<const int32_t*> head_pages_;         // [sequences, num_kv_heads] into those
  tvm::ffi::Optional<tvm::ffi::Function> observer_;
  ObserverOptions observer_options_;
  std::optional<Import> import_;
  CopyPlan moves_;
  std::vector<StepRequest> requests_;  // of the step in flight, tree masks resolved to parents
  mutable std::atomic<bool> busy_{false};
  mutable std::mutex discarded_mutex_;
  mutable std::vector<CheckpointPtr> discarded_;
};

/*! \brief The rows of one part, a layer or K or V, of a (parts, rows, num_kv_heads, head_dim)
 * tensor.
 */
KVRows PartRows(const tvm::runtime::Tensor& kv, int64_t part);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_PAGED_KV_CACHE_IMPL_H_
