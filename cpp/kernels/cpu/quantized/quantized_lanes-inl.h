/*!
 * \file kernels/cpu/quantized/quantized_lanes-inl.h
 * \brief Products of bytes, four inputs of a column to a lane, for the instruction set of the
 * including file.
 *
 * Lanes is a vector of lines of weights as they lie in memory. Of weights of 8 bits, Line8 is such
 * a vector as it is multiplied, and Sum8 what is added up over quads of inputs, from an offset on
 * (Start8); Finish8 makes of it the sum over a block or a part of one. Line4, Sum4, Start4 and
 * Finish4 are the same of 4 bits, whose lines hold two quads of inputs. An offset is what weights
 * that memory has as unsigned numbers give too much: the first is of bytes plus 128, the other of
 * half bytes plus 8.
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

// Rows and vectors of columns whose sums fit the registers.
constexpr int kRows8 = 8, kRows4 = 8;
constexpr int kVecsTogether8 = 2, kVecsTogether4 = 2;
using Lanes = __m512i;
using Line8 = Lanes;
using Sum8 = Lanes;
using Sum4 = Lanes;
struct Line4 {
  Lanes low, high;
};
inline Sum8 Start8(int32_t offset) { return _mm512_set1_epi32(offset); }
inline Sum4 Start4(int32_t offset) { return _mm512_set1_epi32(offset); }
inline Lanes LoadBytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Line8 ToLine8(Lanes w) { return w; }
inline Line4 ToLine4(Lanes w) {
  const Lanes low = _mm512_set1_epi8(15);
  return {_mm512_and_si512(w, low), _mm512_and_si512(_mm512_srli_epi16(w, 4), low)};
}
inline void Dot8(Lanes* sum, Line8 w, int32_t x) {
  *sum = _mm512_dpbusd_epi32(*sum, w, _mm512_set1_epi32(x));
}
inline void Dot4(Lanes* sum, Lanes w, int32_t x) { Dot8(sum, w, x); }
inline Vec Finish8(Lanes sum) { return {_mm512_cvtepi32_ps(sum)}; }
inline Vec Finish4(Lanes sum, int32_t) { return {_mm512_cvtepi32_ps(sum)}; }
inline Vec LoadHalves(const uint8_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Vec LoadUnsigned(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
}
inline Vec LoadSigned(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}

#elif defined(__AVX2__)

using Lanes = __m256i;
struct Line4 {
  Lanes low, high;
};
inline Lanes LoadBytes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Line4 ToLine4(Lanes w) {
  const Lanes low = _mm256_set1_epi8(15);
  return {_mm256_and_si256(w, low), _mm256_and_si256(_mm256_srli_epi16(w, 4), low)};
}

/*! \brief Makes the compiler add up one after another: another order, which integers allow, needs
 * more registers than there are. */
inline void KeepOrder(Lanes* sum) { __asm__("" : "+x"(*sum)); }

#if defined(__AVXVNNI__)

constexpr int kRows8 = 4, kRows4 = 8;
constexpr int kVecsTogether8 = 2, kVecsTogether4 = 1;  // weights of 4 bits are unpacked once
using Line8 = Lanes;
using Sum8 = Lanes;
using Sum4 = Lanes;
inline Sum8 Start8(int32_t offset) { return _mm256_set1_epi32(offset); }
inline Sum4 Start4(int32_t offset) { return _mm256_set1_epi32(offset); }
inline Line8 ToLine8(Lanes w) { return w; }
inline void Dot8(Lanes* sum, Line8 w, int32_t x) {
  *sum = _mm256_dpbusd_avx_epi32(*sum, w, _mm256_set1_epi32(x));
  KeepOrder(sum);
}
inline void Dot4(Lanes* sum, Lanes w, int32_t x) { Dot8(sum, w, x); }
inline Vec Finish8(Sum8 sum) { return {_mm256_cvtepi32_ps(sum)}; }
inline Vec Finish4(Sum4 sum, int32_t) { return {_mm256_cvtepi32_ps(sum)}; }

#else

constexpr int kRows8 = 4, kRows4 = 4;
constexpr int kVecsTogether8 = 2, kVecsTogether4 = 2;
// Signed weights beside their magnitudes, of which the instruction multiplies one.
struct Line8 {
  Lanes weight, magnitude;
};
using Sum8 = Lanes;
using Sum4 = Lanes;  // of pairs of inputs, 16 bits: eight times two products of 15 and 127 fit
inline Sum8 Start8(int32_t) { return _mm256_setzero_si256(); }
// The offset of 32 inputs fits the first of two sums of pairs, and so does what comes out.
inline Sum4 Start4(int32_t offset) { return _mm256_set1_epi32(offset & 0xffff); }
inline Line8 ToLine8(Lanes w) {
  const Lanes weight = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
  return {weight, _mm256_abs_epi8(weight)};
}
inline void Dot4(Sum4* sum, Lanes w, int32_t x) {
  *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(w, _mm256_set1_epi32(x)));
  KeepOrder(sum);
}
// |w| <= 128 times |x| <= 127, twice, fits 16 bits. Halves of the weights, whose products could be
// added up in 16 bits, took a third more time: two products in place of one and a change of signs.
inline void Dot8(Sum8* sum, Line8 w, int32_t x) {
  const Lanes input = _mm256_sign_epi8(_mm256_set1_epi32(x), w.weight);
  const Lanes pairs = _mm256_maddubs_epi16(w.magnitude, input);
  *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  KeepOrder(sum);
}
inline Vec Finish8(Sum8 sum) { return {_mm256_cvtepi32_ps(sum)}; }
inline Vec Finish4(Sum4 sum, int32_t) {
  return {_mm256_cvtepi32_ps(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)))};
}

#endif

inline Vec LoadHalves(const uint8_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Vec LoadUnsigned(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))};
}
inline Vec LoadSigned(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
}

#else  // SSE2: four columns, in plain code

constexpr int kRows8 = 2, kRows4 = 2;
constexpr int kVecsTogether8 = 2, kVecsTogether4 = 2;
struct Lanes {
  int32_t lane[4];
};
struct Line4 {
  Lanes low, high;
};
using Line8 = Lanes;
using Sum8 = Lanes;
using Sum4 = Lanes;
inline Sum8 Start8(int32_t offset) { return {{offset, offset, offset, offset}}; }
inline Sum4 Start4(int32_t offset) { return Start8(offset); }
inline Lanes LoadBytes(const uint8_t* p) {
  Lanes w;
  std::memcpy(&w, p, sizeof(w));
  return w;
}
inline Line8 ToLine8(Lanes w) { return w; }
inline Line4 ToLine4(Lanes w) {
  Line4 line;
  for (int i = 0; i < 4; ++i) {
    const auto both = static_cast<uint32_t>(w.lane[i]);
    line.low.lane[i] = static_cast<int32_t>(both & 0x0f0f0f0fu);
    line.high.lane[i] = static_cast<int32_t>(both >> 4 & 0x0f0f0f0fu);
  }
  return line;
}
inline void Dot8(Lanes* sum, Lanes w, int32_t x) {
  int8_t input[4];
  uint8_t weight[16];
  std::memcpy(input, &x, sizeof(input));
  std::memcpy(weight, &w, sizeof(weight));
  for (int i = 0; i < 16; ++i) sum->lane[i / 4] += weight[i] * input[i % 4];
}
inline void Dot4(Lanes* sum, Lanes w, int32_t x) { Dot8(sum, w, x); }
inline Vec Finish8(Lanes sum) {
  __m128i lanes;
  std::memcpy(&lanes, &sum, sizeof(lanes));
  return {_mm_cvtepi32_ps(lanes)};
}
inline Vec Finish4(Lanes sum, int32_t) { return Finish8(sum); }
inline Vec LoadHalves(const uint8_t* p) {
  float scales[4];
  for (int i = 0; i < 4; ++i) {
    Float16 half;
    std::memcpy(&half, p + 2 * i, sizeof(half));
    scales[i] = ToFloat(half);
  }
  return Load(scales);
}
inline Vec LoadUnsigned(const uint8_t* p) {
  const float bytes[4] = {float(p[0]), float(p[1]), float(p[2]), float(p[3])};
  return Load(bytes);
}
inline Vec LoadSigned(const uint8_t* p) {
  float bytes[4];
  for (int i = 0; i < 4; ++i) bytes[i] = static_cast<float>(static_cast<int8_t>(p[i]));
  return Load(bytes);
}

#endif

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZED_LANES_INL_H_
