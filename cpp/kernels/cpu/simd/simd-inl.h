/*!
 * \file kernels/cpu/simd/simd-inl.h
 * \brief One vector type for the instruction set that the including file is compiled for.
 *
 * Everything is in an unnamed namespace on purpose: each including file gets its own functions, so
 * that the linker cannot keep an AVX copy for the baseline.
 */
#ifndef KVCTL_KERNELS_CPU_SIMD_SIMD_INL_H_
#define KVCTL_KERNELS_CPU_SIMD_SIMD_INL_H_

#include <immintrin.h>

#include <cstdint>

namespace kvctl {
namespace {

#if defined(__AVX512F__)

struct Vec {
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  __m512 v;
};
inline Vec Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void Store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline Vec Splat(float a) { return {_mm512_set1_ps(a)}; }
inline Vec Add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec Mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec Div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec Min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec Max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec Fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec Round(Vec a) { return {_mm512_cvtepi32_ps(_mm512_cvtps_epi32(a.v))}; }
inline Vec PowerOfTwo(Vec integral) {
  __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(integral.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
inline void LoadPair(const uint16_t* p, Vec* low, Vec* high) {
  __m512i bits = _mm512_loadu_si512(p);
  low->v = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  high->v = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-65536)));
}

#elif defined(__AVX2__)

struct Vec {
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  __m256 v;
};
inline Vec Load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void Store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline Vec Splat(float a) { return {_mm256_set1_ps(a)}; }
inline Vec Add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec Mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec Div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec Min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec Max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec Fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec Round(Vec a) { return {_mm256_cvtepi32_ps(_mm256_cvtps_epi32(a.v))}; }
inline Vec PowerOfTwo(Vec integral) {
  __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(integral.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))};
}
inline void LoadPair(const uint16_t* p, Vec* low, Vec* high) {
  __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  low->v = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  high->v = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-65536)));
}

#else  // SSE2, which every x86-64 machine has

struct Vec {
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 16;
  __m128 v;
};
inline Vec Load(const float* p) { return {_mm_loadu_ps(p)}; }
inline void Store(float* p, Vec a) { _mm_storeu_ps(p, a.v); }
inline Vec Splat(float a) { return {_mm_set1_ps(a)}; }
inline Vec Add(Vec a, Vec b) { return {_mm_add_ps(a.v, b.v)}; }
inline Vec Mul(Vec a, Vec b) { return {_mm_mul_ps(a.v, b.v)}; }
inline Vec Div(Vec a, Vec b) { return {_mm_div_ps(a.v, b.v)}; }
inline Vec Min(Vec a, Vec b) { return {_mm_min_ps(a.v, b.v)}; }
inline Vec Max(Vec a, Vec b) { return {_mm_max_ps(a.v, b.v)}; }
inline Vec Fma(Vec a, Vec b, Vec c) { return {_mm_add_ps(_mm_mul_ps(a.v, b.v), c.v)}; }
inline Vec Round(Vec a) { return {_mm_cvtepi32_ps(_mm_cvtps_epi32(a.v))}; }
inline Vec PowerOfTwo(Vec integral) {
  __m128i biased = _mm_add_epi32(_mm_cvtps_epi32(integral.v), _mm_set1_epi32(127));
  return {_mm_castsi128_ps(_mm_slli_epi32(biased, 23))};
}
inline void LoadPair(const uint16_t* p, Vec* low, Vec* high) {
  __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  low->v = _mm_castsi128_ps(_mm_slli_epi32(bits, 16));
  high->v = _mm_castsi128_ps(_mm_and_si128(bits, _mm_set1_epi32(-65536)));
}

#endif

inline float Sum(Vec a) {
  float lanes[Vec::kLanes];
  Store(lanes, a);
  float sum = 0.0f;
  for (float lane : lanes) sum += lane;
  return sum;
}

/*!
 * \brief exp(x) to about two units in the last place, 0 below -87.3 and inf-free above 88; NaN
 * stays NaN.
 *
 * exp(x) = 2^n exp(r) with n = round(x / ln 2), |r| <= ln(2) / 2, and the Taylor series of exp(r)
 * to r^7, whose remainder is below 1e-8.
 */
inline Vec Exp(Vec x) {
  // Min and Max return their second operand where one is NaN.
  x = Min(Splat(88.0f), Max(Splat(-87.3f), x));
  Vec n = Round(Mul(x, Splat(1.44269504f)));
  Vec r = Fma(n, Splat(-0.693359375f),
              x);  // ln 2 in two parts: the first has few bits, n * it is exact
  r = Fma(n, Splat(2.12194440e-4f), r);
  Vec sum = Splat(1.0f / 5040.0f);
  sum = Fma(sum, r, Splat(1.0f / 720.0f));
  sum = Fma(sum, r, Splat(1.0f / 120.0f));
  sum = Fma(sum, r, Splat(1.0f / 24.0f));
  sum = Fma(sum, r, Splat(1.0f / 6.0f));
  sum = Fma(sum, r, Splat(0.5f));
  sum = Fma(sum, r, Splat(1.0f));
  sum = Fma(sum, r, Splat(1.0f));
  return Mul(sum, PowerOfTwo(n));
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SIMD_SIMD_INL_H_
