// Rotation of the new tokens' rows, and of keys that come from outside.
#include "runtime/cache/step/key_rotator.h"

#include <algorithm>
#include <cstring>

#include "kernels/convert_row.h"
#include "kvctl/error.h"

namespace kvctl {

using tvm::runtime::Tensor;

KeyRotator::KeyRotator(const PagedKVCacheConfig& config)
    : config_(config), dtype_(FloatDType(ValueDType(config.dtype), "K and V")) {
  Create(&step_);
}

void KeyRotator::Create(Rotation* rotation) const {
  if (rotation->positions.defined()) return;
  rotation->positions =
      Tensor::Empty({config_.prefill_chunk_size}, {kDLInt, 32, 1}, config_.device);
  if (config_.rope_mode == RopeMode::kNone || config_.split_rotary.has_value()) return;
  RopeParams params;
  params.theta = static_cast<float>(config_.rope_theta);
  params.scale = static_cast<float>(config_.rope_scale);
  params.rotary_dim = static_cast<int32_t>(config_.head_dim);
  rotation->table = std::make_unique<RopeTable>(params);
}

void KeyRotator::FillStepTable(const StepPlan& plan) {
  if (step_.table != nullptr) step_.table->Fill(plan.positions.data(), plan.num_query_tokens());
}

void KeyRotator::FillSinkTable(const std::vector<int32_t>& positions) {
  Create(&sinks_);
  if (sinks_.table == nullptr) return;
  sinks_.table->Fill(positions.data(), static_cast<int32_t>(positions.size()));
}

void KeyRotator::SetStep(const StepPlan& plan) {
  Set(plan.positions.data(), plan.num_query_tokens(), &step_);
}

void KeyRotator::SetSinks(const std::vector<int32_t>& positions) {
  Set(positions.data(), static_cast<int32_t>(positions.size()), &sinks_);
}

void KeyRotator::Set(const int32_t* positions, int32_t num_rows, Rotation* rotation) const {
  Create(rotation);
  if (rotation->table != nullptr) rotation->table->Fill(positions, num_rows);
  std::memcpy(DataPointer(rotation->positions.operator->()), positions, num_rows * sizeof(int32_t));
}

Tensor KeyRotator::Scratch(Tensor* buffer, int64_t num_rows, int64_t num_heads,
                           DLDataType dtype) const {
  if (!buffer->defined() || buffer->DataType() != dtype) {
    *buffer = Tensor::Empty({config_.prefill_chunk_size, num_heads, config_.head_dim}, dtype,
                            config_.device);
  }
  return buffer->CreateView({num_rows, num_heads, config_.head_dim}, dtype);
}

Tensor KeyRotator::TakeRows(Tensor* buffer, int64_t num_rows, int64_t num_heads, DLDataType dtype,
                            KVRows* rows) const {
  Tensor part = Scratch(buffer, num_rows, num_heads, dtype);
  *rows = {DataPointer(part.operator->()), rows->dtype, num_heads * config_.head_dim};
  return part;
}

GivenRows KeyRotator::FusedRows(const Tensor& qkv) const {
  const int64_t qo_heads = config_.num_qo_heads, kv_heads = config_.num_kv_heads;
  const int64_t stride = (qo_heads + 2 * kv_heads) * config_.head_dim;
  const DType dtype = FloatDType(qkv.DataType(), "qkv");
  char* q = static_cast<char*>(DataPointer(qkv.operator->()));
  char* k = q + qo_heads * config_.head_dim * DTypeSize(dtype);
  char* v = k + kv_heads * config_.head_dim * DTypeSize(dtype);
  return {{q, dtype, stride}, {k, dtype, stride}, {v, dtype, stride}, qkv.DataType(), &qkv};
}

namespace {

QKVRows PlainRows(const GivenRows& given) { return {given.q, given.k, given.v, given.k, {}}; }

}  // namespace

QKVRows KeyRotator::Rotate(const GivenRows& given, int64_t num_rows, Rotation* rotation) const {
  const int64_t qo_heads = config_.num_qo_heads, kv_heads = config_.num_kv_heads;
  QKVRows rows = PlainRows(given);
  if (rotation->table != nullptr) {
    const DType dtype = given.q.dtype;
    TakeRows(&rotation->q, num_rows, qo_heads, given.dtype, &rows.q);
    TakeRows(&rotation->k, num_rows, kv_heads, given.dtype, &rows.k);
    RopeCpu(*rotation->table, dtype, qo_heads, config_.head_dim, given.q.data, given.q.row_stride,
            rows.q.data, rows.q.row_stride);
    RopeCpu(*rotation->table, dtype, kv_heads, config_.head_dim, given.k.data, given.k.row_stride,
            rows.k.data, rows.k.row_stride);
  } else if (config_.split_rotary.has_value()) {
    CallLibrary(given, num_rows, rotation, &rows);
  }
  return rows;
}

void KeyRotator::CallLibrary(const GivenRows& given, int64_t num_rows, Rotation* rotation,
                             QKVRows* rows) const {
  const int64_t qo_heads = config_.num_qo_heads, kv_heads = config_.num_kv_heads;
  const DLDataType type = given.dtype;
  const Tensor q = TakeRows(&rotation->q, num_rows, qo_heads, type, &rows->q);
  const Tensor k = TakeRows(&rotation->k, num_rows, kv_heads, type, &rows->k);
  const Tensor v = TakeRows(&rotation->v, num_rows, kv_heads, type, &rows->v);
  const Tensor fused =
      given.fused->CreateView({num_rows, qo_heads + 2 * kv_heads, config_.head_dim}, type);
  const Tensor positions = rotation->positions.CreateView({num_rows}, {kDLInt, 32, 1});
  if (config_.rope_ext_factors.has_value()) {
    config_.split_rotary.value()(fused, positions, q, k, v, config_.rope_ext_factors.value());
  } else {
    config_.split_rotary.value()(fused, positions, q, k, v,
                                 static_cast<int64_t>(config_.rope_mode != RopeMode::kNone));
  }
}

QKVRows KeyRotator::RotateStep(const GivenRows& given, int64_t num_rows, bool at_sinks) {
  QKVRows rows = Rotate(given, num_rows, &step_);
  if (at_sinks) rows.q_at_sinks = Rotate(given, num_rows, &sinks_).q;
  return rows;
}

QKVRows KeyRotator::RotateStepByLibrary(const GivenRows& given, int64_t num_rows, bool at_sinks) {
  return step_.table != nullptr ? PlainRows(given) : RotateStep(given, num_rows, at_sinks);
}

QKVRows KeyRotator::RotateParts(const Tensor& q, const tvm::ffi::Optional<Tensor>& k,
                                const tvm::ffi::Optional<Tensor>& v, bool at_sinks) {
  const int64_t num_rows = q->shape[0], head_dim = config_.head_dim;
  const auto rows_of = [&](const Tensor& part) {
    return KVRows{DataPointer(part.operator->()), FloatDType(part.DataType(), "q, k and v"),
                  part->shape[1] * head_dim};
  };
  if (config_.rope_mode != RopeMode::kInline) {
    QKVRows rows{};
    rows.q = rows.q_at_sinks = rows_of(q);
    if (k.has_value()) rows.k = rows_of(k.value());
    if (v.has_value()) rows.v = rows_of(v.value());
    return rows;
  }
  const int64_t num_heads = config_.num_qo_heads + 2 * config_.num_kv_heads;
  Tensor fused = Scratch(&fused_, num_rows, num_heads, q.DataType());
  const int64_t head_bytes = head_dim * DTypeSize(FloatDType(q.DataType(), "q"));
  char* to = static_cast<char*>(DataPointer(fused.operator->()));
  std::memset(to, 0, num_rows * num_heads * head_bytes);  // the library's function reads all of it
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
  return RotateStep(FusedRows(fused), num_rows, at_sinks);
}

Tensor KeyRotator::EmptyKeys(size_t count) const {
  return Tensor::Empty({1, static_cast<int64_t>(count), config_.num_kv_heads, config_.head_dim},
                       ValueDType(config_.dtype), config_.device);
}

Tensor KeyRotator::RotateKeys(const std::vector<int32_t>& positions, const KVRows& keys) {
  const int64_t kv_heads = config_.num_kv_heads, head_dim = config_.head_dim;
  const int64_t num_heads = config_.num_qo_heads + 2 * kv_heads;
  const int64_t head_bytes = head_dim * DTypeSize(dtype_);
  const int64_t count = static_cast<int64_t>(positions.size());
  Tensor out = EmptyKeys(positions.size());
  for (int64_t first = 0; first < count; first += config_.prefill_chunk_size) {
    const int64_t rows = std::min(config_.prefill_chunk_size, count - first);
    Tensor fused = Scratch(&fused_, rows, num_heads, ValueDType(config_.dtype));
    char* to = static_cast<char*>(DataPointer(fused.operator->()));
    std::memset(to, 0, rows * num_heads * head_bytes);
    for (int64_t row = 0; row < rows; ++row) {
      const char* from = static_cast<const char*>(keys.data) +
                         (first + row) * keys.row_stride * DTypeSize(keys.dtype);
      ConvertRow(from, keys.dtype, to + (row * num_heads + config_.num_qo_heads) * head_bytes,
                 dtype_, kv_heads * head_dim);
    }
    Set(positions.data() + first, static_cast<int32_t>(rows), &keys_);
    const KVRows rotated = Rotate(FusedRows(fused), rows, &keys_).k;
    std::memcpy(static_cast<char*>(DataPointer(out.operator->())) + first * kv_heads * head_bytes,
                rotated.data, rows * kv_heads * head_bytes);
  }
  return out;
}

}  // namespace kvctl
