/*!
 * \file kernels/cuda_plugin.h
 * \brief The interface of libkvctl_cuda.so. Includes no CUDA headers.
 *
 * Data pointers are device pointers unless a comment says otherwise. `stream` is a cudaStream_t on
 * which all work of a call is queued. Calls do not wait for the device unless a comment says so.
 * Errors are thrown as kvctl::Error kRuntime.
 */
#ifndef KVCTL_KERNELS_CUDA_PLUGIN_H_
#define KVCTL_KERNELS_CUDA_PLUGIN_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/cache/sequence_table.h"
#include "core/cache/step_plan.h"
#include "core/mask/mask_plan.h"
#include "kernels/kv_copy.h"
#include "kvctl/graph_state.h"
#include "kvctl/upload_state.h"

namespace kvctl {

enum class Drawn : uint8_t;
enum class Rule : uint8_t;
struct DraftItem;
struct VerifyItem;

/*! \brief Parameters of the device half of a cache. */
struct CudaCacheConfig {
  int device;
  PageShape page;
  int32_t num_layers, num_qo_heads, num_pages, max_query_tokens;
  int32_t rotary_dim;        //!< of BeginStep's rope table, 0 without one
  std::vector<void*> pages;  //!< [num_layers]
  /*! \brief Whether pages at the beginning of several sequences are read once for all, where that
   * pays. */
  bool shares_prefixes = true;
  /*! \brief [num_layers, 2, num_kv_heads], K's, then V's: what elements of kFloat8 pages are
   * multiplied by; empty for other types. */
  std::vector<float> kv_scales;
};

/*! \brief What the queries of a step see of sinks that a window renumbers, and from where. */
struct CudaSinks {
  const MaskTable& masks;
  const std::vector<int32_t>& positions;  //!< [num_query_tokens]
  const float* rope;                      //!< host [num_query_tokens, rotary_dim], or nullptr
  int32_t* device_positions;              //!< [num_query_tokens] receives the positions
};

/*! \brief A step that begins. */
struct CudaStep {
  const StepPlan& plan;
  const int64_t* seq_ids;  //!< host [sequences]: the ids by which resident rows are found
  const MaskTable& masks;
  const float* rope;       //!< host [num_query_tokens, rotary_dim], or nullptr
  int32_t* positions;      //!< [num_query_tokens] receives the step's positions
  const CudaSinks* sinks;  //!< nullptr if no query sees renumbered sinks
  /*! \brief Whether sequences may read the pages that they share together. Attend with `select`
   * is then slow: heads of one sequence may see other pages than those of another. */
  bool shares;
};

/*! \brief One layer's attention. Rows of heads, row_stride elements apart. */
struct CudaAttention {
  int32_t layer;
  KVRows q, k, v;
  bool rotates;  //!< whether q and k are rotated by the step's rope table
  /*! \brief q rotated for renumbered sinks; read unless `rotates`, in a step that has some. */
  KVRows q_at_sinks;
  KVRows out;
  float sm_scale, soft_cap;
  const float* alibi_slopes;  //!< or nullptr
  const float* sinks;         //!< or nullptr
  float* lse;                 //!< or nullptr
  /*! \brief [num_query_tokens, num_qo_heads, head_dim] of QueryDType: receives q as it is
   * attended with; nullptr unless `select` is given. */
  void* q_out;
  /*!
   * \brief Called on the host once q_out is queued; or empty. Returns pages that replace those of
   * the sequences, [sequences, num_kv_heads] on the host, -1 for those that are not seen.
   */
  std::function<const int32_t* const*()> select;
  /*! \brief Whether the call is of this step alone, so that it cannot be captured: it calls the
   * host, or its sums have a row for each key of the step. */
  bool of_one_step;
};

/*! \brief AttentionMass on a device. */
struct CudaAttentionMass {
  float* sums;
  int32_t num_heads, last_queries;
  int64_t num_cleared;  //!< that many sums are set to 0 before
};

/*! \brief The device half of a paged cache. */
class CudaCache {
 public:
  virtual ~CudaCache() = default;
  /*!
   * \brief Uploads the plan of a step, in one copy: of page tables, positions and work items, what
   * has changed since an earlier step.
   * \throws kRuntime if the plan would have to move after attention was captured, or a recorded
   * call was seen to run in a step that it does not fit; nothing was done.
   */
  virtual void BeginStep(const CudaStep& step, void* stream) = 0;
  /*! \brief Writes K and V of the step's new tokens into their slots, then attends. Can be
   * captured. */
  virtual void Attend(const CudaAttention& call, void* stream) = 0;
  /*! \brief AttentionMassCpu for the last Attend, which had lse. What it read must still be there.
   */
  virtual void SumWeights(const CudaAttentionMass& mass, void* stream) = 0;
  /*! \brief Writes K and V of the step's new tokens into their slots. */
  virtual void Append(int32_t layer, const KVRows& k, const KVRows& v, void* stream) = 0;
  /*! \brief Lets later steps move the plan that recorded attention calls read: they are not
   * replayed any more. */
  virtual void ForgetGraphs() = 0;
  virtual GraphState ReadGraphState() const = 0;
  /*!
   * \brief Reads back what the device keeps. Waits for the stream.
   * \param step The step in flight, whose page tables and positions are then looked up as
   * attention does, beside the comparison of all words; or nullptr.
   */
  virtual UploadState CompareUploads(const StepPlan* step, void* stream) const = 0;
  /*! \brief How many finite elements were written to kFloat8 pages as the largest element, which
   * they exceed, since the cache was created. Waits for the stream. */
  virtual int64_t CountSaturated(void* stream) const = 0;
  virtual void Move(const CopyPlan& moves, void* stream) = 0;
  /*! \param slots on the host. */
  virtual void ReadSlots(int32_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                         const KVRows& v, void* stream) = 0;
  virtual void WriteSlots(int32_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                          const KVRows& v, void* stream) = 0;
  virtual void PoisonSlots(int32_t layer, const std::vector<int32_t>& slots, void* stream) = 0;
  /*! \brief Rotates the keys of slots in every layer. \param table host [slots, rotary_dim]. */
  virtual void RotateSlots(const std::vector<int32_t>& slots, const float* table, void* stream) = 0;
};

/*! \brief Verification and drafting on one device. */
class CudaVerify {
 public:
  virtual ~CudaVerify() = default;
  /*!
   * \brief VerifyItems, with targets and draft distributions on the device. Waits for the device
   * once, since the host needs the tokens.
   * \return false if the CPU must handle the call, because of the rule, the parameters or the
   * values of the rows.
   */
  virtual bool Verify(Rule rule, int32_t vocab_size, std::vector<VerifyItem>* items,
                      void* stream) = 0;
  /*!
   * \brief DraftItems, with logits and distributions on the device and the tokens on the host.
   * Waits for the device once.
   * \param probs_type kFloat32 or kFloat64, of the items' distributions, which must be given.
   * \return false if the CPU must handle the call, because of the values of the rows.
   */
  virtual bool Draft(Drawn how, int32_t n, DType probs_type, int32_t vocab_size,
                     std::vector<DraftItem>* items, void* stream) = 0;
  /*! \brief Copies from the device to the host, and waits for the copy. */
  virtual void CopyToHost(void* to, const void* from, size_t bytes, void* stream) = 0;
};

struct CudaPlugin {
  int32_t version;
  CudaCache* (*create_cache)(const CudaCacheConfig& config);
  CudaVerify* (*create_verify)(int device);
  /*! \brief The calling thread's current device, or -1 if there is none. */
  int (*current_device)();
  void (*set_current_device)(int device);
};
constexpr int32_t kCudaPluginVersion = 7;
constexpr const char* kCudaPluginSymbol = "kvctl_cuda_plugin";

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CUDA_PLUGIN_H_
