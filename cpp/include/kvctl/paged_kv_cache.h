/*!
 * \file kvctl/paged_kv_cache.h
 * \brief The paged KV cache for C++ programs.
 *
 * A PagedKVCache is a TVM AttentionKVCache: every vm.builtin.kv_state_* and
 * vm.builtin.attention_kv_cache_* function takes it, and any compiled model runs on it. What it can
 * do beyond TVM's interface is declared here.
 */
#ifndef KVCTL_PAGED_KV_CACHE_H_
#define KVCTL_PAGED_KV_CACHE_H_

#include <runtime/vm/kv_state.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <cstdint>
#include <vector>

#include "kvctl/api.h"
#include "kvctl/step_request.h"

namespace kvctl {

/*! \brief Where rotary position embedding happens; the numbers are TVM's. */
enum class RopeMode : int {
  kNone = 0,    //!< the model does it, or has none
  kNormal = 1,  //!< the cache rotates q and k before k is cached
  kInline = 2,  //!< k is cached as it comes, and rotated when it is attended to
};

/*! \brief What a cache is created with. */
struct PagedKVCacheConfig {
  int64_t num_layers = 0;
  int64_t first_layer =
      0;  //!< the id of its first layer (a pipeline stage holds layers of its own)
  int64_t num_qo_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t page_size = 16;
  int64_t num_pages = 0;
  int64_t max_sequences = 0;  //!< 0: any number
  int64_t prefill_chunk_size = 512;
  DLDataType dtype = {kDLFloat, 32, 1};
  DLDevice device = {kDLCPU, 0};
  RopeMode rope_mode = RopeMode::kNone;
  double rope_scale = 1.0;
  double rope_theta = 10000.0;
  /*! \brief The model's own rotation (TVM's f_split_rotary), or nullopt for kvctl's. */
  tvm::ffi::Optional<tvm::ffi::Function> split_rotary;
  tvm::ffi::Optional<tvm::runtime::Tensor> rope_ext_factors;
  /*! \brief TVM's promise that sequences may get windows; without it they may get them as well. */
  bool sliding_windows = false;
  /*! \brief Per layer the size of its own sliding window, 0 for none; empty: no layer has one. */
  std::vector<int32_t> layer_windows;
};

/*! \brief The rollback horizon of windows that are set through TVM's interface, which names none.
 */
constexpr int64_t kDefaultHorizon = 64;

/*! \brief A point that one sequence of a cache can return to; see PagedKVCacheObj::MakeCheckpoint.
 */
class CacheCheckpointObj : public tvm::ffi::Object {
 public:
  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO("kvctl.CacheCheckpoint", CacheCheckpointObj, tvm::ffi::Object);
};

class CacheCheckpoint : public tvm::ffi::ObjectRef {
 public:
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(CacheCheckpoint, tvm::ffi::ObjectRef,
                                             CacheCheckpointObj);
};

/*! \brief What one attention call may want besides the softmax of scaled products. */
struct AttentionOptions {
  double soft_cap = 0;  //!< > 0: scores become soft_cap * tanh(scores / soft_cap)
  /*! \brief float32 (num_qo_heads,): adds slope * (position of column - position of row). */
  tvm::ffi::Optional<tvm::runtime::Tensor> alibi_slopes;
  /*! \brief float32 (num_qo_heads,): one more logit in each softmax, without a value. */
  tvm::ffi::Optional<tvm::runtime::Tensor> sinks;
  /*! \brief float32 (rows, num_qo_heads): receives the log of the sum of exponentials. */
  tvm::ffi::Optional<tvm::runtime::Tensor> lse;
  /*! \brief float32 (columns of all sequences, num_kv_heads or num_qo_heads), sequence after
   * sequence: the weights that the rows gave to each column are added to it. */
  tvm::ffi::Optional<tvm::runtime::Tensor> mass;
};

/*! \brief What an observer of attention wants to see. */
struct ObserverOptions {
  bool per_query_head = false;  //!< sums for each query head, not for each KV head
  int64_t last_rows = 0;        //!< > 0: of the last so many new tokens of each sequence only
};

/*!
 * \brief The committed tokens of one sequence apart from any cache, as they are saved.
 *
 * `length` tokens, of which those in [evicted_begin, evicted_end) were let go by a sliding window.
 */
struct SavedSequence {
  int64_t length = 0;
  int64_t next_position = 0;  //!< of the token that comes next
  int64_t window_size = 0;    //!< 0: no window
  int64_t sinks = 0;
  int64_t horizon = 0;
  int64_t evicted_begin = 0;
  int64_t evicted_end = 0;
  bool renumber_sinks = false;  //!< see PagedKVCacheObj::SetSlidingWindow
  bool reports_held_length =
      false;  //!< the window was set through TVM's interface, and counts as there
  /*! \brief int32 (length,) on the host, or nullopt where a token's position is its index. */
  tvm::ffi::Optional<tvm::runtime::Tensor> positions;
  /*! \brief (num_layers, length - gone, num_kv_heads, head_dim), of the cache's type. */
  tvm::runtime::Tensor k;
  tvm::runtime::Tensor v;
};

/*!
 * \brief kvctl's cache. Every operation either happens or throws a tvm::ffi::Error and leaves the
 * cache as it was; use from two threads at once is refused with a RuntimeError.
 */
class PagedKVCacheObj : public tvm::runtime::vm::AttentionKVCacheObj {
 public:
  /*! \brief Begins a step in which every sequence may have a mask and positions of its own. */
  virtual void BeginForward(const std::vector<StepRequest>& requests) = 0;
  using AttentionKVCacheObj::BeginForward;
  /*! \brief Takes the step in flight back. */
  virtual void AbortForward() = 0;
  /*! \brief AttentionWithFusedQKV with options. */
  virtual void Attention(int64_t layer, const tvm::runtime::Tensor& qkv,
                         const tvm::runtime::Tensor& out, double sm_scale,
                         const AttentionOptions& options) = 0;
  /*!
   * \brief From now on asks `select` at each attention call which pages of the past to look at.
   *
   * select(layer, q) gets the rotated q of the step's rows, (rows, num_qo_heads, head_dim), which
   * is good until it returns, and returns for each sequence of the step the indices of its pages
   * (an ffi::Shape), or None for all, or an array of one of either for each KV head: page i holds
   * columns [i * page_size, (i + 1) * page_size). Pages with new tokens are always looked at; the
   * step's mask applies as well. It must not use the cache. nullopt: all pages again.
   */
  virtual void SetPageSelector(tvm::ffi::Optional<tvm::ffi::Function> select) = 0;
  /*!
   * \brief From now on tells `observer` after each attention call of AttentionWithFusedQKV what the
   * rows gave to each column: their softmax weights, summed over rows (what H2O and SnapKV rank
   * tokens by). The scores are computed a second time for it.
   *
   * observer(layer, seq_ids, sums) gets the step's sequences and one new float32 tensor for each,
   * (num_columns, num_kv_heads or num_qo_heads). It must not use the cache. nullopt: nobody looks.
   */
  virtual void SetObserver(tvm::ffi::Optional<tvm::ffi::Function> observer,
                           const ObserverOptions& options) = 0;
  /*! \brief Drops the pending nodes of a sequence. */
  virtual void DropPending(int64_t seq_id) = 0;
  /*! \brief Drops the pending nodes of several sequences, or, with nullopt, of all of them. */
  virtual void DropPending(const std::optional<std::vector<int64_t>>& seq_ids) = 0;
  /*! \brief Whether a step is in flight. */
  virtual bool InForward() const = 0;
  /*!
   * \brief Commits the kept nodes of each sequence's pending region and drops the others.
   * \param kept per sequence, ascending indices into its pending region.
   */
  virtual void Commit(const std::vector<int64_t>& seq_ids,
                      const std::vector<std::vector<int32_t>>& kept) = 0;
  /*! \brief PopN over the full range of lengths (TVM's takes an int32). */
  virtual void Pop(int64_t seq_id, int64_t n) = 0;
  /*!
   * \brief Gives a sequence a sliding window: a token sees the last `size` positions, its own
   * included, and the first `sinks`.
   * \param horizon How many tokens the sequence can be popped or rolled back: pages are let go once
   * they are that far behind the window.
   * \param renumber_sinks Whether RoPE keeps the sinks just before the window, wherever that is, as
   * TVM's windows and StreamingLLM do; else they stay where they are. A cache that does not rotate
   * refuses it.
   */
  virtual void SetSlidingWindow(int64_t seq_id, int64_t size, int64_t sinks, int64_t horizon,
                                bool renumber_sinks) = 0;
  /*! \brief The same for every sequence that is added from now on (forks take their parent's). */
  virtual void SetDefaultWindow(int64_t size, int64_t sinks, int64_t horizon,
                                bool renumber_sinks) = 0;
  /*!
   * \brief Keeps some committed tokens of a sequence, which must have no pending nodes.
   * \param keep The tokens that stay, ascending.
   * \param rerotate The kept tokens get the positions 0, 1, 2, ..., and their keys are turned
   * there: by the cache's rotation, or by the model library's, if that turns keys from any of their
   * positions to the new one by the difference (kNotImplemented otherwise).
   */
  virtual void Evict(int64_t seq_id, const std::vector<int32_t>& keep, bool rerotate) = 0;
  /*! \brief A copy of the committed tokens of a sequence, which must have no pending nodes. */
  virtual SavedSequence SaveSequence(int64_t seq_id) const = 0;
  /*! \brief Adds a sequence that this or another cache of the same layout saved. */
  virtual void LoadSequence(int64_t seq_id, const SavedSequence& saved) = 0;
  virtual CacheCheckpoint MakeCheckpoint(int64_t seq_id) = 0;
  virtual void Rollback(int64_t seq_id, const CacheCheckpoint& checkpoint) = 0;

  virtual const PagedKVCacheConfig& config() const = 0;
  virtual bool HasSequence(int64_t seq_id) const = 0;
  /*! \brief Whether a sequence has a sliding window. */
  virtual bool HasWindow(int64_t seq_id) const = 0;
  /*! \brief The ids of all sequences, ascending. */
  virtual std::vector<int64_t> SequenceIds() const = 0;
  virtual int64_t PendingLength(int64_t seq_id) const = 0;
  /*!
   * \brief For tests: checks the books, and fills every slot that no sequence and no checkpoint
   * uses with NaN.
   */
  virtual void PoisonUnused() = 0;

  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO("kvctl.PagedKVCache", PagedKVCacheObj,
                              tvm::runtime::vm::AttentionKVCacheObj);
};

class PagedKVCache : public tvm::runtime::vm::AttentionKVCache {
 public:
  /*!
   * \brief Creates a cache.
   * \throws tvm::ffi::Error ValueError for sizes that make no sense, NotImplementedError for a
   * device or a dtype that kvctl has no kernels for.
   */
  KVCTL_API static PagedKVCache Create(const PagedKVCacheConfig& config);

  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(PagedKVCache, tvm::runtime::vm::AttentionKVCache,
                                             PagedKVCacheObj);
};

/*!
 * \brief Puts kvctl's cache behind vm.builtin.paged_attention_kv_cache_create, for model libraries
 * whose VM is created from now on; those keep it after UninstallCache.
 */
KVCTL_API void InstallCache();
/*! \brief Puts TVM's cache back. */
KVCTL_API void UninstallCache();
/*! \brief Whether kvctl's cache is installed. */
KVCTL_API bool CacheInstalled();

}  // namespace kvctl

#endif  // KVCTL_PAGED_KV_CACHE_H_
