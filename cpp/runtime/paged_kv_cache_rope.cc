// Rotary position embedding of the new tokens' rows.
#include <cstring>

#include "kvctl/error.h"
#include "runtime/paged_kv_cache_impl.h"
#include "runtime/tensor_view.h"

namespace kvctl {

PagedKVCacheImpl::Tensor PagedKVCacheImpl::RotaryScratch(Tensor* buffer, int64_t num_heads,
                                                         DLDataType dtype) {
  if (!buffer->defined() || buffer->DataType() != dtype) {
    *buffer = Tensor::Empty({config_.prefill_chunk_size, num_heads, config_.head_dim}, dtype,
                            config_.device);
  }
  return buffer->CreateView({table_.plan().num_rows(), num_heads, config_.head_dim}, dtype);
}

PagedKVCacheImpl::QKVRows PagedKVCacheImpl::Rotate(const Tensor& qkv) {
  const int64_t qo_heads = config_.num_qo_heads, kv_heads = config_.num_kv_heads;
  const int64_t head_dim = config_.head_dim, num_heads = qo_heads + 2 * kv_heads;
  const int64_t num_rows = table_.plan().num_rows(), stride = num_heads * head_dim;
  const DType dtype = FloatDType(qkv.DataType(), "qkv");
  char* q = static_cast<char*>(DataPointer(qkv.operator->()));
  char* k = q + qo_heads * head_dim * DTypeSize(dtype);
  char* v = k + kv_heads * head_dim * DTypeSize(dtype);
  if (config_.split_rotary.has_value()) {
    Tensor q_rows = RotaryScratch(&q_, qo_heads, qkv.DataType());
    Tensor k_rows = RotaryScratch(&k_, kv_heads, qkv.DataType());
    Tensor v_rows = RotaryScratch(&v_, kv_heads, qkv.DataType());
    Tensor rows = qkv.CreateView({num_rows, num_heads, head_dim}, qkv.DataType());
    Tensor positions = positions_.CreateView({num_rows}, {kDLInt, 32, 1});
    if (config_.rope_ext_factors.has_value()) {
      config_.split_rotary.value()(rows, positions, q_rows, k_rows, v_rows,
                                   config_.rope_ext_factors.value());
    } else {
      config_.split_rotary.value()(rows, positions, q_rows, k_rows, v_rows,
                                   static_cast<int64_t>(config_.rope_mode != RopeMode::kNone));
    }
    return {{DataPointer(q_rows.operator->()), dtype, qo_heads * head_dim},
            {DataPointer(k_rows.operator->()), dtype, kv_heads * head_dim},
            {DataPointer(v_rows.operator->()), dtype, kv_heads * head_dim}};
  }
  if (rope_ == nullptr) return {{q, dtype, stride}, {k, dtype, stride}, {v, dtype, stride}};
  Tensor q_rows = RotaryScratch(&q_, qo_heads, qkv.DataType());
  Tensor k_rows = RotaryScratch(&k_, kv_heads, qkv.DataType());
  void* q_data = DataPointer(q_rows.operator->());
  void* k_data = DataPointer(k_rows.operator->());
  RopeCpu(*rope_, dtype, qo_heads, head_dim, q, stride, q_data, qo_heads * head_dim);
  RopeCpu(*rope_, dtype, kv_heads, head_dim, k, stride, k_data, kv_heads * head_dim);
  return {{q_data, dtype, qo_heads * head_dim},
          {k_data, dtype, kv_heads * head_dim},
          {v, dtype, stride}};
}

PagedKVCacheImpl::QKVRows PagedKVCacheImpl::RotateParts(const Tensor& q,
                                                        const tvm::ffi::Optional<Tensor>& k,
                                                        const tvm::ffi::Optional<Tensor>& v) {
  const int64_t num_rows = table_.plan().num_rows(), head_dim = config_.head_dim;
  const auto rows_of = [&](const Tensor& part) {
    return KVRows{DataPointer(part.operator->()), FloatDType(part.DataType(), "q, k and v"),
                  part->shape[1] * head_dim};
  };
  if (config_.rope_mode != RopeMode::kInline) {
    QKVRows rows{rows_of(q), {}, {}};
    if (k.has_value()) rows.k = rows_of(k.value());
    if (v.has_value()) rows.v = rows_of(v.value());
    return rows;
  }
  const int64_t num_heads = config_.num_qo_heads + 2 * config_.num_kv_heads;
  Tensor fused = RotaryScratch(&fused_, num_heads, q.DataType());
  const int64_t row_bytes = num_heads * head_dim * DTypeSize(FloatDType(q.DataType(), "q"));
  char* to = static_cast<char*>(DataPointer(fused.operator->()));
  std::memset(to, 0, num_rows * row_bytes);  // a model's function reads all of it
  const auto put = [&](const Tensor& part, int64_t first_head) {
    if (part.DataType() != q.DataType()) {
      Throw(ErrorKind::kType, "q, k and v must have one element type");
    }
    const int64_t bytes = row_bytes / num_heads * part->shape[1];
    for (int64_t row = 0; row < num_rows; ++row) {
      std::memcpy(to + row * row_bytes + row_bytes / num_heads * first_head,
                  static_cast<const char*>(DataPointer(part.operator->())) + row * bytes, bytes);
    }
  };
  put(q, 0);
  if (k.has_value()) put(k.value(), config_.num_qo_heads);
  if (v.has_value()) put(v.value(), config_.num_qo_heads + config_.num_kv_heads);
  return Rotate(fused);
}

}  // namespace kvctl
