#include "kernels/rope.h"

#include <array>
#include <cmath>

#include "kernels/cpu/simd/with_type.h"
#include "kernels/int8_row.h"
#include "kernels/team.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr double kPi = 3.14159265358979323846;
// Rotation is cheap: below this many elements a second thread costs more than it saves.
constexpr int64_t kParallelElements = 1 << 15;

double Stretch(double frequency, const RopeLlama3Scaling& scaling) {
  const double rotations = scaling.original_max_position * frequency / (2 * kPi);
  if (rotations >= scaling.high_freq_factor) return frequency;
  if (rotations <= scaling.low_freq_factor) return frequency / scaling.factor;
  const double keep = (rotations - scaling.low_freq_factor) /
                      (double{scaling.high_freq_factor} - scaling.low_freq_factor);
  return frequency * ((1 - keep) / scaling.factor + keep);
}

template <typename T>
void RotateHead(const float* cosines, int32_t rotary_dim, const T* x, T* y) {
  const int32_t half = rotary_dim / 2;
  const float* sines = cosines + half;
  for (int32_t d = 0; d < half; ++d) {
    const float a = ToFloat(x[d]), b = ToFloat(x[d + half]);
    FromFloat(a * cosines[d] - b * sines[d], y + d);
    FromFloat(b * cosines[d] + a * sines[d], y + d + half);
  }
}

template <typename T>
void RotateSlots(const RopeTable& table, const PageShape& shape, T* pages, const int32_t* slots) {
  const int64_t elements = int64_t{table.num_rows()} * shape.num_kv_heads * shape.head_dim;
#pragma omp parallel for if (UseTeam(elements > kParallelElements))
  for (int32_t row = 0; row < table.num_rows(); ++row) {
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      T* key = pages + shape.Offset(slots[row], 0, head);
      RotateHead(table.row(row), table.params().rotary_dim, key, key);
    }
  }
}

/*! \brief The same for pages of 8-bit integers: the rotated keys are quantised again. */
void RotateInt8Slots(const RopeTable& table, const PageShape& shape, int8_t* pages,
                     const int32_t* slots) {
  const int64_t elements = int64_t{table.num_rows()} * shape.num_kv_heads * shape.head_dim;
#pragma omp parallel for if (UseTeam(elements > kParallelElements))
  for (int32_t row = 0; row < table.num_rows(); ++row) {
    std::array<float, kMostHeadElements> values;
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      int8_t* key = pages + shape.Offset(slots[row], 0, head);
      DequantizeRow(key, shape.head_dim, values.data());
      RotateHead(table.row(row), table.params().rotary_dim, values.data(), values.data());
      QuantizeRow(values.data(), shape.head_dim, key);
    }
  }
}

template <typename T>
void Rotate(const RopeTable& table, int32_t num_heads, int32_t head_dim, const T* in,
            int64_t in_row_stride, T* out, int64_t out_row_stride) {
  const int32_t rotary_dim = table.params().rotary_dim;
  const int64_t elements = int64_t(table.num_rows()) * num_heads * head_dim;
#pragma omp parallel for if (UseTeam(elements > kParallelElements))
  for (int32_t row = 0; row < table.num_rows(); ++row) {
    for (int32_t head = 0; head < num_heads; ++head) {
      const T* x = in + row * in_row_stride + int64_t(head) * head_dim;
      T* y = out + row * out_row_stride + int64_t(head) * head_dim;
      RotateHead(table.row(row), rotary_dim, x, y);
      for (int32_t d = rotary_dim; d < head_dim; ++d) y[d] = x[d];
    }
  }
}

}  // namespace

RopeTable::RopeTable(const RopeParams& params) : params_(params) {
  if (params.rotary_dim <= 0 || params.rotary_dim % 2 != 0) {
    Throw(ErrorKind::kValue, "rotary_dim must be even and positive, got ", params.rotary_dim);
  }
  for (int32_t d = 0; d < params.rotary_dim / 2; ++d) {
    const double frequency = std::pow(double{params.theta}, -2.0 * d / params.rotary_dim);
    frequencies_.push_back(params.scale * Stretch(frequency, params.llama3));
  }
}

void RopeTable::Fill(const int32_t* positions, int32_t num_rows) {
  const int32_t half = params_.rotary_dim / 2;
  const size_t size = size_t(num_rows) * params_.rotary_dim;
  if (values_.size() < size) values_.resize(size);
  num_rows_ = num_rows;
  for (int32_t row = 0; row < num_rows; ++row) {
    float* cosines = values_.data() + int64_t(row) * params_.rotary_dim;
    for (int32_t d = 0; d < half; ++d) {
      const double angle = positions[row] * frequencies_[d];
      cosines[d] = static_cast<float>(std::cos(angle));
      cosines[d + half] = static_cast<float>(std::sin(angle));
    }
  }
}

namespace {

void CheckRotaryDim(const RopeTable& table, int32_t head_dim) {
  if (table.params().rotary_dim <= head_dim) return;
  Throw(ErrorKind::kValue, "rotary_dim ", table.params().rotary_dim, " is larger than head_dim ",
        head_dim);
}

}  // namespace

void RopeCpu(const RopeTable& table, DType dtype, int32_t num_heads, int32_t head_dim,
             const void* in, int64_t in_row_stride, void* out, int64_t out_row_stride) {
  CheckRotaryDim(table, head_dim);
  WithType(dtype, [&](auto type) {
    using T = decltype(type);
    Rotate(table, num_heads, head_dim, static_cast<const T*>(in), in_row_stride,
           static_cast<T*>(out), out_row_stride);
  });
}

void FillRopeTableCpu(const int32_t* positions, int32_t rows, const double* frequencies,
                      int32_t half, double factor, float* out) {
#pragma omp parallel for if (UseTeam(int64_t{rows} * half > kParallelElements / 8))
  for (int32_t row = 0; row < rows; ++row) {
    float* cosines = out + int64_t{row} * 2 * half;
    for (int32_t d = 0; d < half; ++d) {
      const double angle = positions[row] * frequencies[d];
      cosines[d] = static_cast<float>(factor * std::cos(angle));
      cosines[d + half] = static_cast<float>(factor * std::sin(angle));
    }
  }
}

void RotateHeadsCpu(const float* table, int32_t rotary_dim, const RotatedHeads& heads,
                    const float* in, float* out) {
  const int64_t dim = heads.head_dim, row_size = heads.num_heads * dim;
#pragma omp parallel for if (UseTeam(heads.rows * row_size > kParallelElements))
  for (int64_t row = 0; row < heads.rows; ++row) {
    const float* x = in + row * row_size;
    float* y = out + row * row_size;
    for (int64_t head = 0; head < heads.rotated; ++head) {
      RotateHead(table + row * rotary_dim, rotary_dim, x + head * dim, y + head * dim);
      for (int64_t d = rotary_dim; d < dim; ++d) y[head * dim + d] = x[head * dim + d];
    }
    for (int64_t i = heads.rotated * dim; i < row_size; ++i) y[i] = x[i];
  }
}

void RopeSlotsCpu(const RopeTable& table, const PageShape& shape, void* pages,
                  const int32_t* slots) {
  CheckRotaryDim(table, shape.head_dim);
  if (shape.dtype == DType::kInt8) {
    return RotateInt8Slots(table, shape, static_cast<int8_t*>(pages), slots);
  }
  WithType(shape.dtype, [&](auto type) {
    RotateSlots(table, shape, static_cast<decltype(type)*>(pages), slots);
  });
}

}  // namespace kvctl
