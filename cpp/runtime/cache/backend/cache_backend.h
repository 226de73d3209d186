/*!
 * \file runtime/cache/backend/cache_backend.h
 * \brief A cache's pages on one device, and what the device does with them.
 */
#ifndef KVCTL_RUNTIME_CACHE_BACKEND_CACHE_BACKEND_H_
#define KVCTL_RUNTIME_CACHE_BACKEND_CACHE_BACKEND_H_

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "core/cache/sequence_table.h"
#include "kernels/kv_copy.h"
#include "kernels/rope.h"
#include "kvctl/paged_kv_cache.h"
#include "runtime/cache/backend/cache_feature.h"
#include "runtime/cache/step/attention_hooks.h"
#include "runtime/cache/step/forward_step.h"
#include "runtime/cache/step/key_rotator.h"

namespace kvctl {

/*! \brief One layer's attention with q, K and V in one tensor. */
struct FusedAttention {
  int64_t layer_id;
  const tvm::runtime::Tensor& qkv;  //!< (at least rows, num_qo_heads + 2 * num_kv_heads, head_dim)
  const tvm::runtime::Tensor& out;  //!< (as many rows, num_qo_heads, head_dim)
  double sm_scale;
  const AttentionOptions& options;
};

/*! \brief One layer's attention with q, K and V apart: see PagedKVCacheObj::AttentionInPlace. */
struct SeparateAttention {
  int64_t layer_id;
  const tvm::runtime::Tensor &q, &k, &v;
  const tvm::runtime::Tensor& out;  //!< (rows, num_qo_heads, head_dim), perhaps (batch, n, ...)
  double sm_scale;
  const AttentionOptions& options;
};

/*! \brief One layer's attention, with arguments that have been checked. */
struct LayerAttention {
  int64_t layer_id;
  GivenRows given;
  const tvm::runtime::Tensor& out;
  double sm_scale;
  const AttentionOptions& options;
};

/*! \brief Which part of attention a call of TVM's interface asks for. */
enum class PartKind {
  kSelf,      //!< to the new tokens, whose K and V are given
  kCross,     //!< to the tokens in the cache
  kSharedKV,  //!< to both, with the cached tokens of another layer
};

/*! \brief One layer's attention to some of the keys; tensors are (rows, heads, head_dim). */
struct PartAttention {
  PartKind kind;
  int64_t layer_id;
  const tvm::runtime::Tensor& q;
  tvm::ffi::Optional<tvm::runtime::Tensor> k, v;  //!< nullopt for kCross
  const tvm::runtime::Tensor& out;
  tvm::ffi::Optional<tvm::runtime::Tensor> lse;  //!< float32 (rows, num_qo_heads), in base 2
  double sm_scale;
};

/*! \brief Results of attention over two disjoint sets of keys; the first becomes the sum. */
struct AttentionResults {
  const tvm::runtime::Tensor &out, &lse, &other_out, &other_lse;
};

/*! \brief The pages of all layers on one device. */
class CacheBackend {
 public:
  using Tensor = tvm::runtime::Tensor;

  virtual ~CacheBackend() = default;
  CacheBackend(const CacheBackend&) = delete;
  CacheBackend& operator=(const CacheBackend&) = delete;

  /*! \throws Error kNotImplemented or kValue for a device without a backend, or a configuration
   * that its backend does not support. */
  static void CheckDevice(const PagedKVCacheConfig& config);
  /*! \brief The backend of the configuration's device. All arguments must outlive it. */
  static std::unique_ptr<CacheBackend> Create(const PagedKVCacheConfig& config, KeyRotator* rotator,
                                              AttentionHooks* hooks);

  bool Supports(CacheFeature feature) const { return CapabilityOf(feature).On(device_); }
  /*! \throws Error kNotImplemented with the feature's refusal if it is not supported. */
  void Require(CacheFeature feature) const {
    if (!Supports(feature)) Refuse(feature);
  }

  /*! \brief Whether the model library's rotation may be called for keys in the cache: it takes
   * keys in host memory. */
  bool CallsLibraryForKeys() const { return device_ == CacheDevice::kCpu; }

  int64_t num_layers() const { return config_.num_layers; }
  /*! \brief Whether K is kept before its rotation as well; ReadSlots then reads that. */
  bool KeepsPlainKeys() const { return config_.rope_mode == RopeMode::kInline; }

  // A step.
  /*! \brief Prepares positions, rotation and masks of the step for the device. */
  virtual void BeginStep(ForwardStep* step) = 0;
  /*! \brief Writes the layer's K and V of the new tokens into their slots, and attends. */
  void Attend(ForwardStep* step, const FusedAttention& call);
  /*! \brief The same; false, and nothing happens, if strides or the rotation do not allow it. */
  bool AttendInPlace(ForwardStep* step, const SeparateAttention& call);
  virtual void AttendPart(ForwardStep* step, const PartAttention& call);
  virtual void Merge(const AttentionResults& results);

  // Slots, on all layers unless one is named.
  virtual void ApplyCopies(const CopyPlan& copies) = 0;
  /*! \brief Reads K and V of one layer's slots; with inline RoPE K before its rotation. */
  virtual void ReadSlots(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                         const KVRows& v) const = 0;
  /*!
   * \brief Writes one layer's slots. Rows without data are left out.
   * \param plain_k K before its rotation; given with inline RoPE only.
   */
  virtual void WriteSlots(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                          const KVRows& v, const KVRows& plain_k) = 0;
  /*! \brief CudaCache::ForgetGraphs; nothing on the CPU. */
  virtual void ForgetGraphs() {}
  /*! \brief CudaCache::ReadGraphState. \throws Error kNotImplemented on the CPU. */
  virtual GraphState ReadGraphState() const;
  /*! \brief CudaCache::CompareUploads. \throws Error kNotImplemented on the CPU. */
  virtual UploadState ReadUploads(const StepPlan* step) const;
  /*! \brief PagedKVCacheObj::CountSaturated. */
  virtual int64_t CountSaturated() const { return 0; }
  /*! \brief The pages of a layer: (num_pages, 2, num_kv_heads, page_size, row elements). */
  const tvm::runtime::Tensor& LayerPages(int64_t layer) const { return pages_[layer]; }
  /*! \brief Fills slots with NaN. */
  virtual void PoisonSlots(const std::vector<int32_t>& slots) = 0;
  /*! \brief Rotates cached keys in place with kvctl's rotation. */
  void RotateSlots(const std::vector<KeyRotation>& rotations);
  /*! \brief Reads slots as (num_layers, slots, num_kv_heads, head_dim), or as rows of int8 pages.
   */
  void ReadSlots(const std::vector<int32_t>& slots, const Tensor& k, const Tensor& v) const;
  /*!
   * \brief Writes slots. If the model library's rotation throws, nothing has been written.
   * \param positions [slots] read only with inline RoPE, where K is given before its rotation.
   * \param k, v (num_layers, slots, num_kv_heads, head_dim), or rows of int8 pages
   */
  void WriteSlots(const std::vector<int32_t>& slots, const std::vector<int32_t>& positions,
                  const Tensor& k, const Tensor& v);

 protected:
  CacheBackend(CacheDevice device, const PagedKVCacheConfig& config, KeyRotator* rotator);

  /*! \brief Attend, with arguments that have been checked. */
  virtual void AppendAndAttend(ForwardStep* step, int32_t layer, const LayerAttention& call) = 0;
  /*! \brief Rotates the key of each slot in every layer by its row of the table. */
  virtual void RotateSlots(const std::vector<int32_t>& slots, const RopeTable& table) = 0;
  /*! \brief The data of a float32 tensor of an option; nullptr where it is not given. */
  float* OptionData(const tvm::ffi::Optional<Tensor>& tensor, const char* name,
                    std::initializer_list<int64_t> shape) const;

  const CacheDevice device_;
  const PagedKVCacheConfig& config_;
  const PageShape page_shape_;
  std::vector<Tensor> pages_;  // [layers] (num_pages, 2, num_kv_heads, page_size, row elements)
  KeyRotator& rotator_;
};

/*! \brief The shape of a layer's pages. */
PageShape PageShapeOf(const PagedKVCacheConfig& config);

/*! \brief What elements of float8_e4m3fn pages are multiplied by, [num_layers, 2, num_kv_heads].
 * \throws Error kType or kValue if the configuration's tensor is of another type or shape. */
std::vector<float> KVScales(const PagedKVCacheConfig& config);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_BACKEND_CACHE_BACKEND_H_
