#include "runtime/cache/backend/cache_backend.h"

#include <algorithm>
#include <optional>

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
  } else if (PageDType(config.dtype) == DType::kFloat8) {
    Refuse(CacheFeature::kFloat8Pages);
  }
}

std::unique_ptr<CacheBackend> CacheBackend::Create(const PagedKVCacheConfig& config,
                                                   KeyRotator* rotator, AttentionHooks* hooks) {
  if (IsCuda(config.device)) return std::make_unique<CudaCacheBackend>(config, rotator, hooks);
  return std::make_unique<CpuCacheBackend>(config, rotator, hooks);
}

PageShape PageShapeOf(const PagedKVCacheConfig& config) {
  return {static_cast<int32_t>(config.num_kv_heads), static_cast<int32_t>(config.page_size),
          static_cast<int32_t>(config.head_dim), PageDType(config.dtype)};
}

std::vector<float> KVScales(const PagedKVCacheConfig& config) {
  const int64_t count = config.num_layers * 2 * config.num_kv_heads;
  if (!config.kv_scales.has_value()) return std::vector<float>(count, 1.f);
  const auto* scales = TensorData<const float>(config.kv_scales.value(), "kv_scales",
                                               {config.num_layers, 2, config.num_kv_heads});
  return std::vector<float>(scales, scales + count);
}

CacheBackend::CacheBackend(CacheDevice device, const PagedKVCacheConfig& config,
                           KeyRotator* rotator)
    : device_(device), config_(config), page_shape_(PageShapeOf(config)), rotator_(*rotator) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    pages_.push_back(Tensor::Empty(
        {config.num_pages, 2, config.num_kv_heads, config.page_size, page_shape_.row_elements()},
        config.dtype, config.device));
  }
}

GraphState CacheBackend::ReadGraphState() const {
  Throw(ErrorKind::kNotImplemented,
        "CUDA graphs record caches on CUDA devices, and this one is on the CPU");
}

UploadState CacheBackend::ReadUploads(const StepPlan*) const {
  Throw(ErrorKind::kNotImplemented,
        "caches on CUDA devices upload their steps, and this one is on the CPU");
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
  AppendAndAttend(
      step, layer,
      {call.layer_id, rotator_.FusedRows(call.qkv), call.out, call.sm_scale, call.options});
}

namespace {

/*! \brief Which tokens a tensor has: (rows, heads, head_dim) or (batch, heads, n, head_dim). */
struct TokenAxes {
  explicit TokenAxes(const Tensor& tensor)
      : batch(tensor->ndim == 4 ? tensor->shape[0] : 1),
        rows(tensor->ndim == 4 ? tensor->shape[2] : tensor->shape[0]) {}
  int64_t batch, rows;
};

/*! \brief The rows of q, K or V where they lie; nullopt if its strides are not those of rows. */
std::optional<KVRows> RowsInPlace(const Tensor& tensor, DType dtype) {
  const TokenAxes axes(tensor);
  const int ndim = tensor->ndim;
  const int64_t* strides = tensor->strides;
  const int64_t heads = tensor->shape[1], head_dim = tensor->shape[ndim - 1];
  const int64_t row = strides[ndim == 4 ? 2 : 0];
  const bool dense = strides[ndim - 1] == 1 && (heads == 1 || strides[1] == head_dim);
  if (!dense) return std::nullopt;
  void* data = DataPointer(tensor.operator->());
  if (axes.batch == 1) return KVRows{data, dtype, row};
  if (axes.rows == 1) return KVRows{data, dtype, strides[0]};
  if (strides[0] != axes.rows * row) return std::nullopt;
  return KVRows{data, dtype, row};
}

}  // namespace

bool CacheBackend::AttendInPlace(ForwardStep* step, const SeparateAttention& call) {
  const int32_t layer = step->AttendedLayer(call.layer_id);
  const int64_t num_rows = step->plan().num_query_tokens(), head_dim = config_.head_dim;
  if (call.q->ndim != 3 && call.q->ndim != 4) {
    Throw(ErrorKind::kValue, "q must have 3 or 4 dimensions, got ", call.q->ndim);
  }
  const TokenAxes axes(call.q);
  const auto check = [&](const Tensor& tensor, const char* name, int64_t heads) {
    if (call.q->ndim == 3) {
      CheckShape(tensor.operator->(), name, config_.device, {axes.rows, heads, head_dim});
    } else {
      CheckShape(tensor.operator->(), name, config_.device,
                 {axes.batch, heads, axes.rows, head_dim});
    }
    CheckDType(tensor.operator->(), name, call.q.DataType());
  };
  check(call.q, "q", config_.num_qo_heads);
  check(call.k, "k", config_.num_kv_heads);
  check(call.v, "v", config_.num_kv_heads);
  if (axes.batch * axes.rows != num_rows) {
    Throw(ErrorKind::kValue, "q has ", axes.batch * axes.rows, " rows and the step has ", num_rows,
          " new tokens");
  }
  if (call.q->ndim == 3) {
    CheckTensor(call.out.operator->(), "the attention output", config_.device,
                {num_rows, config_.num_qo_heads, head_dim});
  } else {
    CheckTensor(call.out.operator->(), "the attention output", config_.device,
                {axes.batch, axes.rows, config_.num_qo_heads, head_dim});
  }
  if (call.options.mass.has_value()) Require(CacheFeature::kAttentionSums);
  const DType dtype = FloatDType(call.q.DataType(), "q");
  const std::optional<KVRows> q = RowsInPlace(call.q, dtype), k = RowsInPlace(call.k, dtype),
                              v = RowsInPlace(call.v, dtype);
  if (!q.has_value() || !k.has_value() || !v.has_value() || !rotator_.TakesRowsApart()) {
    return false;
  }
  AppendAndAttend(step, layer,
                  {call.layer_id,
                   {*q, *k, *v, call.q.DataType(), nullptr},
                   call.out,
                   call.sm_scale,
                   call.options});
  return true;
}

void CacheBackend::AttendPart(ForwardStep*, const PartAttention&) {
  Refuse(CacheFeature::kAttentionInParts);
}

void CacheBackend::Merge(const AttentionResults&) { Refuse(CacheFeature::kAttentionInParts); }

void CacheBackend::RotateSlots(const std::vector<KeyRotation>& rotations) {
  constexpr size_t kBlock = 1024;  // a bound for the memory of their cosines and sines
  if (rotations.empty()) return;
  RopeTable table(rotator_.step_table()->params());
  std::vector<int32_t> slots, differences;
  for (size_t begin = 0; begin < rotations.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, rotations.size());
    slots.clear();
    differences.clear();
    for (size_t i = begin; i < end; ++i) {
      slots.push_back(rotations[i].slot);
      differences.push_back(rotations[i].to - rotations[i].from);
    }
    table.Fill(differences.data(), static_cast<int32_t>(differences.size()));
    RotateSlots(slots, table);
  }
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
