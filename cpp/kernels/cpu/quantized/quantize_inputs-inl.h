/*!
 * \file kernels/cpu/quantized/quantize_inputs-inl.h
 * \brief Inputs of a linear layer as bytes, for the instruction set of the including file.
 */
#ifndef KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZE_INPUTS_INL_H_
#define KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZE_INPUTS_INL_H_

#include <immintrin.h>

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
  const int32_t both = offsets[0] + offsets[1];
  out.offsets[b] = {{128 * offsets[0], 128 * offsets[1]}, 128 * both, 8 * both};
  out.sums[b] = scale * static_cast<float>(both);
}

#if defined(__AVX2__)

/*! \brief The same, bit by bit, of a block whose inputs are finite and not all next to nothing. */
inline void QuantizeFinite(const float* x, float magnitude, int64_t b, const QuantizedRows& out) {
  const float scale = magnitude / 127.0f;
  const __m256 inverse = _mm256_set1_ps(127.0f / magnitude), round = _mm256_set1_ps(12582912.0f);
  __m256i q[4];
  for (int i = 0; i < 4; ++i) {
    const __m256 rounded = _mm256_fmadd_ps(_mm256_loadu_ps(x + 8 * i), inverse, round);
    q[i] = _mm256_sub_epi32(_mm256_castps_si256(rounded), _mm256_set1_epi32(0x4b400000));
  }
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]),  // lanes mixed
                                           _mm256_packs_epi32(q[2], q[3]));
  const __m256i values =
      _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.values + b * kBlockInputs), values);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), values);
  __m256i sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(-1));  // four of each half
  sums = _mm256_hadd_epi32(sums, sums);
  sums = _mm256_hadd_epi32(sums, sums);
  const int32_t first = _mm256_extract_epi32(sums, 0), second = _mm256_extract_epi32(sums, 4);
  const int32_t both = first + second;
  out.scales[b] = scale;
  out.offsets[b] = {{128 * first, 128 * second}, 128 * both, 8 * both};
  out.sums[b] = scale * static_cast<float>(both);
}

/*! \brief The largest magnitude of 32 inputs as bits. */
inline uint32_t LargestOf(const float* x) {
  __m256i largest = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 8 * i));
    largest = _mm256_max_epu32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
  }
  __m128i four =
      _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
}

void QuantizeRow(const float* x, int64_t row, int64_t blocks, const QuantizedRows& out) {
  int64_t place = out.At(row, 0, blocks);
  for (int64_t b = 0; b < blocks; ++b, place += out.together) {
    const float* inputs = x + (row * blocks + b) * kBlockInputs;
    const uint32_t largest = LargestOf(inputs);
    if (largest < 0x7f800000u && FromBits(largest) >= 1e-30f) {
      QuantizeFinite(inputs, FromBits(largest), place, out);
    } else {
      QuantizeInputs(inputs, place, out);
    }
  }
}

#else

void QuantizeRow(const float* x, int64_t row, int64_t blocks, const QuantizedRows& out) {
  for (int64_t b = 0; b < blocks; ++b) {
    QuantizeInputs(x + (row * blocks + b) * kBlockInputs, out.At(row, b, blocks), out);
  }
}

#endif

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZE_INPUTS_INL_H_
