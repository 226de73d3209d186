#include "runtime/cache/backend/cache_backend.h"

#include "kvctl/error.h"
#include "runtime/cache/backend/cpu_cache_backend.h"
#include "runtime/cache/backend/cuda_cache_backend.h"
#include "runtime/cache/step/kv_rows.h"
#include "runtime/support/device.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

using tvm::runtime::Tensor;

void CacheBackend::CheckDevice(const PagedKVCacheConfig& config) {
  if (IsCuda(config.device)) {
    CudaCacheBackend::Check(config);
  } else if (!IsCpu(config.device)) {
    Throw(ErrorKind::kNotImplemented, "kvctl has cache kernels for the CPU and for CUDA only");
  } else if (config.device.device_id != 0) {
    Throw(ErrorKind::kValue, "the CPU is device 0, got ", config.device.device_id);
  }
}

std::unique_ptr<CacheBackend> CacheBackend::Create(const PagedKVCacheConfig& config,
                                                   KeyRotator* rotator, AttentionHooks* hooks) {
  if (IsCuda(config.device)) return std::make_unique<CudaCacheBackend>(config, rotator);
  return std::make_unique<CpuCacheBackend>(config, rotator, hooks);
}

PageShape PageShapeOf(const PagedKVCacheConfig& config) {
  return {static_cast<int32_t>(config.num_kv_heads), static_cast<int32_t>(config.page_size),
          static_cast<int32_t>(config.head_dim), FloatDType(config.dtype, "the cache's dtype")};
}

CacheBackend::CacheBackend(CacheDevice device, const PagedKVCacheConfig& config,
                           KeyRotator* rotator)
    : device_(device), config_(config), page_shape_(PageShapeOf(config)), rotator_(*rotator) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    pages_.push_back(
        Tensor::Empty({config.num_pages, 2, config.num_kv_heads, config.page_size, config.head_dim},
                      config.dtype, config.device));
  }
}

void CacheBackend::Attend(ForwardStep* step, const FusedAttention& call) {
  const int32_t layer = step->AttendedLayer(call.layer_id);
  const int64_t num_rows = step->plan().num_query_tokens();
  const int64_t qo_heads = config_.num_qo_heads, head_dim = config_.head_dim;
  CheckTensor(call.qkv.operator->(), "qkv", config_.device,
              {kAnyExtent, qo_heads + 2 * config_.num_kv_heads, head_dim});
  CheckTensor(call.out.operator->(), "the attention output", config_.device,
              {call.qkv->shape[0], qo_heads, head_dim});
  if (call.qkv->shape[0] < num_rows) {
    Throw(ErrorKind::kValue, "qkv has ", call.qkv->shape[0], " rows and the step has ", num_rows,
          " new tokens");
  }
  if (call.options.mass.has_value()) Require(CacheFeature::kAttentionSums);
  AppendAndAttend(step, layer, call);
}

void CacheBackend::AttendPart(ForwardStep*, const PartAttention&) {
  Refuse(CacheFeature::kAttentionInParts);
}

void CacheBackend::Merge(const AttentionResults&) { Refuse(CacheFeature::kAttentionInParts); }

void CacheBackend::RotateSlots(const std::vector<KeyRotation>&) {
  Refuse(CacheFeature::kRerotatedEviction);
}

void CacheBackend::ReadSlots(const std::vector<int32_t>& slots, const Tensor& k,
                             const Tensor& v) const {
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    ReadSlots(layer, slots, PartRows(k, layer), PartRows(v, layer));
  }
}

void CacheBackend::WriteSlots(const std::vector<int32_t>& slots,
                              const std::vector<int32_t>& positions, const Tensor& k,
                              const Tensor& v) {
  std::vector<Tensor> rotated;  // of all layers before any is written: the rotation may throw
  for (int64_t layer = 0; KeepsPlainKeys() && layer < config_.num_layers; ++layer) {
    rotated.push_back(rotator_.RotateKeys(positions, PartRows(k, layer)));
  }
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const KVRows given = PartRows(k, layer);
    WriteSlots(layer, slots, KeepsPlainKeys() ? PartRows(rotated[layer], 0) : given,
               PartRows(v, layer), KeepsPlainKeys() ? given : KVRows{});
  }
}

float* CacheBackend::OptionData(const tvm::ffi::Optional<Tensor>& tensor, const char* name,
                                std::initializer_list<int64_t> shape) const {
  if (!tensor.has_value()) return nullptr;
  return TensorData<float>(tensor.value(), name, shape, config_.device);
}

}  // namespace kvctl
