/*!
 * \file kernels/cpu/linear/silu_mul_row-inl.h
 * \brief SiLU(gate) * up of one row, for the instruction set of the including file.
 */
#ifndef KVCTL_KERNELS_CPU_LINEAR_SILU_MUL_ROW_INL_H_
#define KVCTL_KERNELS_CPU_LINEAR_SILU_MUL_ROW_INL_H_

#include "kernels/cpu/simd/simd-inl.h"

namespace kvctl {
namespace {

inline Vec SiluMulVec(Vec gate, Vec up) {
  Vec denominator = Add(Splat(1.0f), Exp(Mul(gate, Splat(-1.0f))));
  return Mul(Div(gate, denominator), up);
}

void SiluMulRow(const float* gate, const float* up, int64_t cols, float* out) {
  const int64_t whole = cols - cols % Vec::kLanes;
  for (int64_t i = 0; i < whole; i += Vec::kLanes) {
    Store(out + i, SiluMulVec(Load(gate + i), Load(up + i)));
  }
  if (whole == cols) return;
  float tail[3][Vec::kLanes] = {};
  for (int64_t i = whole; i < cols; ++i) {
    tail[0][i - whole] = gate[i];
    tail[1][i - whole] = up[i];
  }
  Store(tail[2], SiluMulVec(Load(tail[0]), Load(tail[1])));
  for (int64_t i = whole; i < cols; ++i) out[i] = tail[2][i - whole];
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_LINEAR_SILU_MUL_ROW_INL_H_
