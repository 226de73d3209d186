/*!
 * \file kernels/cpu/linear/rms_norm_row-inl.h
 * \brief RMSNorm of one row, for the instruction set of the including file.
 */
#ifndef KVCTL_KERNELS_CPU_LINEAR_RMS_NORM_ROW_INL_H_
#define KVCTL_KERNELS_CPU_LINEAR_RMS_NORM_ROW_INL_H_

#include "kernels/cpu/simd/simd-inl.h"

namespace kvctl {
namespace {

void RmsNormRow(const float* x, const float* weight, int64_t cols, float epsilon, float* out) {
  const int64_t whole = cols - cols % Vec::kLanes;
  Vec squares = Splat(0.0f);
  for (int64_t i = 0; i < whole; i += Vec::kLanes) squares = Fma(Load(x + i), Load(x + i), squares);
  float sum = Sum(squares);
  for (int64_t i = whole; i < cols; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(cols) + epsilon);
  for (int64_t i = 0; i < whole; i += Vec::kLanes) {
    Store(out + i, Mul(Mul(Load(x + i), Splat(scale)), Load(weight + i)));
  }
  for (int64_t i = whole; i < cols; ++i) out[i] = x[i] * scale * weight[i];
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_LINEAR_RMS_NORM_ROW_INL_H_
