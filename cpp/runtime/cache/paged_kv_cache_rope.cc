// Rotary position embedding: of the new tokens' rows, and of keys that come from outside.
#include <algorithm>
#include <cstring>

#include "kernels/convert_row.h"
#include "kvctl/error.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

void PagedKVCacheImpl::CreateRotation(Rotation* rotation) const {
  if (rotation->positions.defined()) return;
  rotation->positions =
      Tensor::Empty({config_.prefill_chunk_size}, {kDLInt, 32, 1}, config_.device);
  if (config_.rope_mode == RopeMode::kNone || config_.split_rotary.has_value()) return;
  RopeParams params;
  params.theta = static_cast<float>(config_.rope_theta);
  params.scale = static_cast<float>(config_.rope_scale);
  params.rotary_dim = page_shape_.head_dim;
  rotation->table = std::make_unique<RopeTable>(params);
}

void PagedKVCacheImpl::FillRotation(const int32_t* positions, int32_t num_rows,
                                    Rotation* rotation) const {
  CreateRotation(rotation);
  if (rotation->table != nullptr) rotation->table->Fill(positions, num_rows);
  if (!IsCpu(config_.device)) return;  // positions go there with the step's plan
  std::memcpy(DataPointer(rotation->positions.operator->()), positions, num_rows * sizeof(int32_t));
}

PagedKVCacheImpl::Tensor PagedKVCacheImpl::Scratch(Tensor* buffer, int64_t num_rows,
                                                   int64_t num_heads, DLDataType dtype) const {
  if (!buffer->defined() || buffer->DataType() != dtype) {
    *buffer = Tensor::Empty({config_.prefill_chunk_size, num_heads, config_.head_dim}, dtype,
                            config_.device);
  }
  return buffer->CreateView({num_rows, num_heads, config_.head_dim}, dtype);
}

PagedKVCacheImpl::QKVRows PagedKVCacheImpl::Rotate(const Tensor& qkv, int64_t num_rows,
                                                   Rotation* rotation) const {
  const int64_t qo_heads = config_.num_qo_heads, kv_heads = config_.num_kv_heads;
  const int64_t head_dim = config_.head_dim, num_heads = qo_heads + 2 * kv_heads;
  const int64_t stride = num_heads * head_dim;
  const DLDataType type = qkv.DataType();
  const DType dtype = FloatDType(type, "qkv");
  char* q = static_cast<char*>(DataPointer(qkv.operator->()));
  char* k = q + qo_heads * head_dim * DTypeSize(dtype);
  char* v = k + kv_heads * head_dim * DTypeSize(dtype);
  QKVRows rows{{q, dtype, stride}, {k, dtype, stride}, {v, dtype, stride}, {k, dtype, stride}, {}};
  if (rotation->table == nullptr && !config_.split_rotary.has_value()) return rows;
  if (rotation->table != nullptr && cuda_ != nullptr) return rows;  // they turn as they are written
  const auto take = [&](Tensor* buffer, int64_t heads, KVRows* to) {
    Tensor part = Scratch(buffer, num_rows, heads, type);
    *to = {DataPointer(part.operator->()), dtype, heads * head_dim};
    return part;
  };
  const Tensor q_rows = take(&rotation->q, qo_heads, &rows.q);
  const Tensor k_rows = take(&rotation->k, kv_heads, &rows.k);
  if (rotation->table != nullptr) {
    RopeCpu(*rotation->table, dtype, qo_heads, head_dim, q, stride, rows.q.data, rows.q.row_stride);
    RopeCpu(*rotation->table, dtype, kv_heads, head_dim, k, stride, rows.k.data, rows.k.row_stride);
    return rows;
  }
  const Tensor v_rows = take(&rotation->v, kv_heads, &rows.v);
  const Tensor fused = qkv.CreateView({num_rows, num_heads, head_dim}, type);
  const Tensor positions = rotation->positions.CreateView({num_rows}, {kDLInt, 32, 1});
  if (config_.rope_ext_factors.has_value()) {
    config_.split_rotary.value()(fused, positions, q_rows, k_rows, v_rows,
                                 config_.rope_ext_factors.value());
  } else {
    config_.split_rotary.value()(fused, positions, q_rows, k_rows, v_rows,
                                 static_cast<int64_t>(config_.rope_mode != RopeMode::kNone));
  }
  return rows;
}

PagedKVCacheImpl::QKVRows PagedKVCacheImpl::RotateStep(const Tensor& qkv) {
  const int64_t num_rows = table_.plan().num_query_tokens();
  QKVRows rows = Rotate(qkv, num_rows, &step_rotation_);
  if (!sink_masks_.empty()) rows.q_at_sinks = Rotate(qkv, num_rows, &sink_rotation_).q;
  return rows;
}

PagedKVCacheImpl::QKVRows PagedKVCacheImpl::RotateParts(const Tensor& q,
                                                        const tvm::ffi::Optional<Tensor>& k,
                                                        const tvm::ffi::Optional<Tensor>& v) {
  const int64_t num_rows = table_.plan().num_query_tokens(), head_dim = config_.head_dim;
  const auto rows_of = [&](const Tensor& part) {
    return KVRows{DataPointer(part.operator->()), FloatDType(part.DataType(), "q, k and v"),
                  part->shape[1] * head_dim};
  };
  if (config_.rope_mode != RopeMode::kInline) {
    QKVRows rows;
    rows.q = rows.q_at_sinks = rows_of(q);
    if (k.has_value()) rows.k = rows_of(k.value());
    if (v.has_value()) rows.v = rows_of(v.value());
    return rows;
  }
  const int64_t num_heads = config_.num_qo_heads + 2 * config_.num_kv_heads;
  Tensor fused = Scratch(&fused_, num_rows, num_heads, q.DataType());
  const int64_t head_bytes = head_dim * DTypeSize(FloatDType(q.DataType(), "q"));
  char* to = static_cast<char*>(DataPointer(fused.operator->()));
  std::memset(to, 0, num_rows * num_heads * head_bytes);  // a model's function reads all of it
  const auto put = [&](const Tensor& part, int64_t first_head) {
    if (part.DataType() != q.DataType()) {
      Throw(ErrorKind::kType, "q, k and v must have one element type");
    }
    const int64_t bytes = part->shape[1] * head_bytes;
    const char* from = static_cast<const char*>(DataPointer(part.operator->()));
    for (int64_t row = 0; row < num_rows; ++row) {
      std::memcpy(to + (row * num_heads + first_head) * head_bytes, from + row * bytes, bytes);
    }
  };
  put(q, 0);
  if (k.has_value()) put(k.value(), config_.num_qo_heads);
  if (v.has_value()) put(v.value(), config_.num_qo_heads + config_.num_kv_heads);
  return RotateStep(fused);
}

PagedKVCacheImpl::Tensor PagedKVCacheImpl::RotatedKeys(const std::vector<int32_t>& positions,
                                                       const KVRows& keys) {
  const int64_t kv_heads = config_.num_kv_heads, head_dim = config_.head_dim;
  const int64_t num_heads = config_.num_qo_heads + 2 * kv_heads;
  const int64_t head_bytes = head_dim * DTypeSize(page_shape_.dtype);
  const int64_t count = static_cast<int64_t>(positions.size());
  Tensor out = EmptyKeys(positions.size());
  for (int64_t first = 0; first < count; first += config_.prefill_chunk_size) {
    const int64_t rows = std::min(config_.prefill_chunk_size, count - first);
    Tensor fused = Scratch(&fused_, rows, num_heads, config_.dtype);
    char* to = static_cast<char*>(DataPointer(fused.operator->()));
    std::memset(to, 0, rows * num_heads * head_bytes);
    for (int64_t row = 0; row < rows; ++row) {
      const char* from = static_cast<const char*>(keys.data) +
                         (first + row) * keys.row_stride * DTypeSize(keys.dtype);
      ConvertRow(from, keys.dtype, to + (row * num_heads + config_.num_qo_heads) * head_bytes,
                 page_shape_.dtype, kv_heads * head_dim);
    }
    FillRotation(positions.data() + first, static_cast<int32_t>(rows), &key_rotation_);
    const KVRows rotated = Rotate(fused, rows, &key_rotation_).k;
    std::memcpy(static_cast<char*>(DataPointer(out.operator->())) + first * kv_heads * head_bytes,
                rotated.data, rows * kv_heads * head_bytes);
  }
  return out;
}

}  // namespace kvctl
