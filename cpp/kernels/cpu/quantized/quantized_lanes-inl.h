/*!
 * \file kernels/cpu/quantized/quantized_lanes-inl.h
 * \brief Products of bytes, four inputs of a column to a lane, for the instruction set of the
 * including file.
 *
 * Lanes is a vector of int32 sums, one per column; Column is a line of weights as it is multiplied.
 * DotInt8 and DotInt4 add the products of one quad of inputs; FinishInt8 and FinishInt4 turn what
 * has been added up into the sum over a block, given minus the sum of its inputs.
 */
#ifndef KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZED_LANES_INL_H_
#define KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZED_LANES_INL_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/convert.h"
#include "kernels/cpu/simd/simd-inl.h"

namespace kvctl {
namespace {

inline int32_t Quad(const int8_t* x) {
  int32_t quad;
  std::memcpy(&quad, x, sizeof(quad));
  return quad;
}

#if defined(__AVX512VNNI__)

constexpr int kRowsTogether = 8;
using Lanes = __m512i;
inline Lanes ZeroLanes() { return _mm512_setzero_si512(); }
inline Lanes LoadBytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Lanes LowHalves(Lanes w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
inline Lanes HighHalves(Lanes w) { return LowHalves(_mm512_srli_epi16(w, 4)); }
inline Lanes DotInt8(Lanes sum, Lanes w, int32_t x) {
  return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(x));
}
inline Lanes DotInt4(Lanes sum, Lanes w, int32_t x) { return DotInt8(sum, w, x); }
inline Vec FinishInt8(Lanes sum, int32_t offset) {
  return {_mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_set1_epi32(128 * offset)))};
}
inline Vec FinishInt4(Lanes sum, int32_t offset) {
  return {_mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_set1_epi32(8 * offset)))};
}
inline Vec LoadScales(const uint8_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

#elif defined(__AVX2__)

constexpr int kRowsTogether = 4;
using Lanes = __m256i;
inline Lanes ZeroLanes() { return _mm256_setzero_si256(); }
inline Lanes LoadBytes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Lanes LowHalves(Lanes w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
inline Lanes HighHalves(Lanes w) { return LowHalves(_mm256_srli_epi16(w, 4)); }
// |w| <= 128 times |x| <= 127, twice, fits 16 bits.
inline Lanes DotInt8(Lanes sum, Lanes w, int32_t x) {
  const Lanes weight = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
  const Lanes input = _mm256_sign_epi8(_mm256_set1_epi32(x), weight);
  const Lanes pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weight), input);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// Sums of 16 bits: eight times two products of 15 and 127 fit.
inline Lanes DotInt4(Lanes sum, Lanes w, int32_t x) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, _mm256_set1_epi32(x)));
}
inline Vec FinishInt8(Lanes sum, int32_t) { return {_mm256_cvtepi32_ps(sum)}; }
inline Vec FinishInt4(Lanes sum, int32_t offset) {
  const Lanes whole = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  return {_mm256_cvtepi32_ps(_mm256_add_epi32(whole, _mm256_set1_epi32(8 * offset)))};
}
inline Vec LoadScales(const uint8_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

#else  // SSE2: four columns, in plain code

constexpr int kRowsTogether = 2;
struct Lanes {
  int32_t lane[4];
};
inline Lanes ZeroLanes() { return {}; }
inline Lanes LoadBytes(const uint8_t* p) {
  Lanes w;
  std::memcpy(&w, p, sizeof(w));
  return w;
}
inline Lanes LowHalves(Lanes w) {
  for (int32_t& lane : w.lane) lane &= 0x0f0f0f0f;
  return w;
}
inline Lanes HighHalves(Lanes w) {
  for (int32_t& lane : w.lane) lane = static_cast<int32_t>(static_cast<uint32_t>(lane) >> 4);
  return LowHalves(w);
}
inline Lanes DotInt8(Lanes sum, Lanes w, int32_t x) {
  int8_t input[4];
  uint8_t weight[16];
  std::memcpy(input, &x, sizeof(input));
  std::memcpy(weight, &w, sizeof(weight));
  for (int i = 0; i < 16; ++i) sum.lane[i / 4] += weight[i] * input[i % 4];
  return sum;
}
inline Lanes DotInt4(Lanes sum, Lanes w, int32_t x) { return DotInt8(sum, w, x); }
inline Vec ToVec(Lanes sum, int32_t offset) {
  __m128i lanes;
  std::memcpy(&lanes, &sum, sizeof(lanes));
  return {_mm_cvtepi32_ps(_mm_add_epi32(lanes, _mm_set1_epi32(offset)))};
}
inline Vec FinishInt8(Lanes sum, int32_t offset) { return ToVec(sum, 128 * offset); }
inline Vec FinishInt4(Lanes sum, int32_t offset) { return ToVec(sum, 8 * offset); }
inline Vec LoadScales(const uint8_t* p) {
  float scales[4];
  for (int i = 0; i < 4; ++i) {
    Float16 half;
    std::memcpy(&half, p + 2 * i, sizeof(half));
    scales[i] = ToFloat(half);
  }
  return Load(scales);
}

#endif

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZED_LANES_INL_H_
