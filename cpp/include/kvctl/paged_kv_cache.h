/*!
 * \file kvctl/paged_kv_cache.h
 * \brief The paged KV cache for C++ programs.
 *
 * A PagedKVCache is a TVM AttentionKVCache: every vm.builtin.kv_state_* and
 * vm.builtin.attention_kv_cache_* function takes it, and any compiled model runs on it. This header
 * declares what it does beyond TVM's interface.
 */
#ifndef KVCTL_PAGED_KV_CACHE_H_
#define KVCTL_PAGED_KV_CACHE_H_

#include <runtime/vm/kv_state.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "kvctl/api.h"
#include "kvctl/graph_state.h"
#include "kvctl/step_request.h"
#include "kvctl/upload_state.h"

namespace kvctl {

/*! \brief Where rotary position embedding happens, with TVM's numbers. */
enum class RopeMode : int {
  kNone = 0,    //!< the model does it, or has none
  kNormal = 1,  //!< the cache rotates q and k before k is cached
  kInline = 2,  //!< k is given and read unrotated, and attention rotates it
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
  /*! \brief Of the pages: float32, float16, bfloat16, int8 with a float32 scale behind the K and
   * the V of each token and KV head, or, on CUDA, float8_e4m3fn with kv_scales. */
  DLDataType dtype = {kDLFloat, 32, 1};
  /*! \brief float32 (num_layers, 2, num_kv_heads) on the host, K's and then V's: what elements of
   * float8_e4m3fn pages are multiplied by. nullopt: 1, and for other pages. */
  tvm::ffi::Optional<tvm::runtime::Tensor> kv_scales;
  DLDevice device = {kDLCPU, 0};
  RopeMode rope_mode = RopeMode::kNone;
  double rope_scale = 1.0;
  double rope_theta = 10000.0;
  /*! \brief The model's own rotation (TVM's f_split_rotary), or nullopt for kvctl's. */
  tvm::ffi::Optional<tvm::ffi::Function> split_rotary;
  tvm::ffi::Optional<tvm::runtime::Tensor> rope_ext_factors;
  /*! \brief Whether TVM was told that sequences may have windows. They may have them in any case.
   */
  bool sliding_windows = false;
  /*! \brief [num_layers] the size of each layer's own sliding window, 0 for none; or empty. */
  std::vector<int32_t> layer_windows;
};

/*! \brief The rollback horizon of windows set through TVM's interface, which has no such argument.
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

/*! \brief Options of one attention call. */
struct AttentionOptions {
  double soft_cap = 0;  //!< > 0: scores become soft_cap * tanh(scores / soft_cap)
  /*! \brief float32 (num_qo_heads,): adds slope * (position of key - position of query). */
  tvm::ffi::Optional<tvm::runtime::Tensor> alibi_slopes;
  /*! \brief float32 (num_qo_heads,): one more logit in each softmax, without a value. */
  tvm::ffi::Optional<tvm::runtime::Tensor> sinks;
  /*! \brief float32 (rows, num_qo_heads): receives the log of the sum of exponentials. */
  tvm::ffi::Optional<tvm::runtime::Tensor> lse;
  /*! \brief float32 (keys of all sequences, num_kv_heads or num_qo_heads), sequence after
   * sequence. The attention weights of each key, summed over queries, are added to it. */
  tvm::ffi::Optional<tvm::runtime::Tensor> mass;
};

/*! \brief What an observer of attention receives. */
struct ObserverOptions {
  bool per_query_head = false;  //!< sums for each query head, not for each KV head
  int64_t last_rows = 0;        //!< > 0: only the last so many new tokens of each sequence count
};

/*!
 * \brief The committed tokens of one sequence, outside of any cache.
 *
 * It has `length` tokens, of which a sliding window has evicted [evicted_begin, evicted_end).
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
      false;  //!< the window was set through TVM's interface, which counts tokens otherwise
  /*! \brief int32 (length,) on the host, or nullopt where a token's position is its index. */
  tvm::ffi::Optional<tvm::runtime::Tensor> positions;
  /*! \brief (num_layers, length - evicted, num_kv_heads, head_dim), of the cache's type; of int8,
   * head_dim + 4: the scale's bytes lie behind the integers. */
  tvm::runtime::Tensor k;
  tvm::runtime::Tensor v;
};

/*!
 * \brief kvctl's cache. Every operation either happens or throws a tvm::ffi::Error and leaves the
 * cache as it was. Use from two threads at once is refused with a RuntimeError; only calls that
 * clean up (EndForward, AbortForward, DropPending, RemoveSequence, Rollback), and HasSequence,
 * wait.
 */
class PagedKVCacheObj : public tvm::runtime::vm::AttentionKVCacheObj {
 public:
  /*! \brief Begins a step in which every sequence may have a mask and positions of its own. */
  virtual void BeginForward(const std::vector<StepRequest>& requests) = 0;
  using AttentionKVCacheObj::BeginForward;
  /*! \brief Undoes the step in flight. */
  virtual void AbortForward() = 0;
  /*! \brief AttentionWithFusedQKV with options. */
  virtual void Attention(int64_t layer, const tvm::runtime::Tensor& qkv,
                         const tvm::runtime::Tensor& out, double sm_scale,
                         const AttentionOptions& options) = 0;
  /*!
   * \brief The same with q, K and V apart, which are read where they lie.
   *
   * q, k and v are (rows, heads, head_dim), or (batch, heads, n, head_dim), where token i of batch
   * row b is the step's new token b * n + i; out is (rows, num_qo_heads, head_dim) or (batch, n,
   * num_qo_heads, head_dim). The heads of a token must follow one another, and tokens a fixed
   * distance.
   *
   * \return false, and nothing happens, where strides of q, k or v are others, or the model library
   * rotates, which takes one tensor.
   */
  virtual bool AttentionInPlace(int64_t layer, const tvm::runtime::Tensor& q,
                                const tvm::runtime::Tensor& k, const tvm::runtime::Tensor& v,
                                const tvm::runtime::Tensor& out, double sm_scale,
                                const AttentionOptions& options) = 0;
  /*!
   * \brief Sets a function that selects the pages of each attention call; nullopt removes it.
   *
   * select(layer, q) receives the rotated q of the step's queries, (queries, num_qo_heads,
   * head_dim), which is valid until it returns. It returns for each sequence of the step the
   * indices of its pages (an ffi::Shape), or None for all, or an array of one of either for each KV
   * head. Page i holds keys [i * page_size, (i + 1) * page_size). Pages with new tokens are always
   * read, and the step's mask applies as well. The function must not use the cache.
   */
  virtual void SetPageSelector(tvm::ffi::Optional<tvm::ffi::Function> select) = 0;
  /*!
   * \brief Sets a function that receives the attention weights of each key, summed over queries,
   * after each call of AttentionWithFusedQKV; nullopt removes it.
   *
   * H2O and SnapKV rank tokens by these sums. Attention computes the scores a second time for them.
   * observer(layer, seq_ids, sums) receives the step's sequences and one new float32 tensor for
   * each, (kv_len, num_kv_heads or num_qo_heads). The function must not use the cache.
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
   * \param kept per sequence, ascending indices into its pending region: a path from the committed
   * context. Nodes that came under a mask that is neither causal nor a tree may follow any others.
   */
  virtual void Commit(const std::vector<int64_t>& seq_ids,
                      const std::vector<std::vector<int32_t>>& kept) = 0;
  /*!
   * \brief Commit for any nodes whose positions continue the sequence. The K and V of a node whose
   * path is not kept were computed behind tokens that are dropped.
   */
  virtual void CommitAnyNodes(const std::vector<int64_t>& seq_ids,
                              const std::vector<std::vector<int32_t>>& kept) = 0;
  /*! \brief PopN over the full range of lengths (TVM's takes an int32). */
  virtual void Pop(int64_t seq_id, int64_t n) = 0;
  /*!
   * \brief Gives a sequence a sliding window: a token sees the last `size` positions, its own
   * included, and the first `sinks`.
   * \param horizon How many tokens the sequence can be popped or rolled back. Pages are evicted
   * once they are that far behind the window.
   * \param renumber_sinks Whether RoPE keeps the sinks just before the window as it moves, as TVM's
   * windows and StreamingLLM do; otherwise they keep their positions. A cache that does not rotate
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
   * \param rerotate The kept tokens get the positions 0, 1, 2, ..., and their keys are rotated to
   * them: by the cache's rotation, or by the model library's if that rotates keys from each of
   * their positions to the new one by the difference (kNotImplemented otherwise).
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
  /*! \brief The pages of a sequence, in the order of its tokens; -1 where its window evicted one.
   */
  virtual std::vector<int64_t> PageIds(int64_t seq_id) const = 0;
  /*! \brief Keys of a sequence: committed, pending, and those of a step in flight. */
  virtual int64_t KVLength(int64_t seq_id) const = 0;
  /*!
   * \brief The pages of a layer, where they lie: (num_pages, 2, num_kv_heads, page_size, head_dim),
   * K and then V; of int8, head_dim + 4. Key c of a sequence lies in its page c / page_size.
   *
   * \throws IndexError if there is no such layer.
   */
  virtual tvm::runtime::Tensor LayerPages(int64_t layer) = 0;
  /*!
   * \brief Says that CUDA graphs recorded with this cache's attention are not replayed any more.
   *
   * A step whose plan would move is refused while one may be.
   */
  virtual void ForgetGraphs() = 0;
  /*!
   * \brief What a graph recorded now would depend on.
   * \throws NotImplementedError on the CPU.
   */
  virtual GraphState ReadGraphState() const = 0;
  /*!
   * \brief What the last step sent to the CUDA device, and whether the device has what the host
   * takes it to have, down to the tables of the step in flight. Waits for the stream.
   * \throws NotImplementedError on the CPU.
   */
  virtual UploadState ReadUploads() const = 0;
  /*!
   * \brief How many elements of K and V were written as the largest that their scale allows, 448
   * times the scale, instead of a larger one, since the cache was created. Waits for the stream.
   * 0 for pages other than float8_e4m3fn.
   */
  virtual int64_t CountSaturated() const = 0;
  /*!
   * \brief For tests: checks the pages' reference counts, and fills every slot that no sequence and
   * no checkpoint uses with NaN.
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
