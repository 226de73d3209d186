/*!
 * \file kernels/cpu/quantized/quantize_inputs-inl.h
 * \brief Inputs of a linear layer as bytes, for the instruction set of the including file.
 */
#ifndef KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZE_INPUTS_INL_H_
#define KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZE_INPUTS_INL_H_

#include "kernels/convert.h"
#include "kernels/cpu/quantized/linear_quantized.h"

namespace kvctl {
namespace {

/*! \brief Quantises 32 inputs, to the block at place `b`, to nearest, ties to even. */
inline void QuantizeInputs(const float* x, int64_t b, const QuantizedRows& out) {
  uint32_t largest = 0;  // as bits: NaN and infinity are the largest
  for (int i = 0; i < kBlockInputs; ++i) {
    const uint32_t magnitude = ToBits(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float magnitude = FromBits(largest);
  const bool finite = largest < 0x7f800000u;
  // Below this the inverse would overflow: such inputs count as zero.
  const bool zero = !finite || magnitude < 1e-30f;
  const float inverse = zero ? 0.0f : 127.0f / magnitude;
  const float scale = finite ? (zero ? 0.0f : magnitude / 127.0f) : FromBits(0x7fc00000u);
  int8_t* values = out.values + b * kBlockInputs;
  int32_t offsets[2] = {0, 0};
  for (int half = 0; half < 2; ++half) {
    int32_t sum = 0;
    for (int i = half * kBlockInputs / 2; i < (half + 1) * kBlockInputs / 2; ++i) {
      // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
      const float value = zero ? 0.0f : x[i];
      const auto q = static_cast<int32_t>(ToBits(value * inverse + 12582912.0f) - 0x4b400000u);
      values[i] = static_cast<int8_t>(q);
      sum -= q;
    }
    offsets[half] = sum;
  }
  out.scales[b] = scale;
  out.offsets[2 * b] = offsets[0];
  out.offsets[2 * b + 1] = offsets[1];
  out.sums[b] = scale * static_cast<float>(offsets[0] + offsets[1]);
}

void QuantizeRow(const float* x, int64_t row, int64_t blocks, const QuantizedRows& out) {
  for (int64_t b = 0; b < blocks; ++b) {
    QuantizeInputs(x + (row * blocks + b) * kBlockInputs, out.At(row, b, blocks), out);
  }
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZE_INPUTS_INL_H_
