/*!
 * \file kernels/cpu/simd/vec_baseline-inl.h
 * \brief Vectors of four floats: SSE2, which every x86-64 machine has. Included by vec-inl.h.
 */
#ifndef KVCTL_KERNELS_CPU_SIMD_VEC_BASELINE_INL_H_
#define KVCTL_KERNELS_CPU_SIMD_VEC_BASELINE_INL_H_

#include <emmintrin.h>

#include <cstdint>

#include "kernels/convert.h"

namespace kvctl {
namespace {

constexpr int kLanes = 4;
constexpr int32_t kScoreQueries = 6;  // of scores: times two accumulators fit the registers
constexpr int32_t kValueQueries = 4;  // of sums of values...
constexpr int32_t kValueVectors = 3;  // ... times this many accumulators

using Vec = __m128;

inline Vec Zero() { return _mm_setzero_ps(); }
inline Vec Set(float x) { return _mm_set1_ps(x); }
inline Vec Load(const float* p) { return _mm_loadu_ps(p); }
inline Vec Load(const BFloat16* p) {
  const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), bits));
}
inline Vec Load(const Float16* p) {
  return _mm_setr_ps(ToFloat(p[0]), ToFloat(p[1]), ToFloat(p[2]), ToFloat(p[3]));
}
/*! \brief Integers of 8 bits. */
inline Vec Load(const int8_t* p) { return _mm_setr_ps(p[0], p[1], p[2], p[3]); }
inline void Store(float* p, Vec x) { _mm_storeu_ps(p, x); }
inline Vec Add(Vec a, Vec b) { return _mm_add_ps(a, b); }
inline Vec Sub(Vec a, Vec b) { return _mm_sub_ps(a, b); }
inline Vec Mul(Vec a, Vec b) { return _mm_mul_ps(a, b); }
inline Vec Div(Vec a, Vec b) { return _mm_div_ps(a, b); }
inline Vec Fma(Vec a, Vec b, Vec c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
/*! \brief Fma that keeps the sum in its register: of many sums GCC moves some to and fro. */
inline Vec FmaInPlace(Vec a, Vec b, Vec sum) { return Fma(a, b, sum); }
/*! \brief b where either is NaN. */
inline Vec Max(Vec a, Vec b) { return _mm_max_ps(a, b); }

/*! \brief x in the lanes whose bit is set, y in the others. */
inline Vec Select(uint64_t bits, Vec x, Vec y) {
  const __m128i lane = _mm_setr_epi32(1, 2, 4, 8);
  const __m128i chosen = _mm_and_si128(_mm_set1_epi32(static_cast<int>(bits & 15)), lane);
  const Vec mask = _mm_castsi128_ps(_mm_cmpeq_epi32(chosen, lane));
  return _mm_or_ps(_mm_and_ps(mask, x), _mm_andnot_ps(mask, y));
}

/*! \brief magnitude with the sign of `sign`. */
inline Vec CopySign(Vec magnitude, Vec sign) {
  const Vec bit = _mm_set1_ps(-0.f);
  return _mm_or_ps(_mm_andnot_ps(bit, magnitude), _mm_and_ps(bit, sign));
}
inline Vec RoundToInt(Vec x) { return _mm_cvtepi32_ps(_mm_cvtps_epi32(x)); }
/*! \brief value times 2 to the power of RoundToInt(x) where x >= least or x is NaN, else 0. */
inline Vec Scale2(Vec value, Vec x, Vec least) {
  const __m128i shifted = _mm_slli_epi32(_mm_cvtps_epi32(x), 23);
  const __m128i scaled = _mm_add_epi32(_mm_castps_si128(value), shifted);
  return _mm_andnot_ps(_mm_cmplt_ps(x, least), _mm_castsi128_ps(scaled));
}

/*! \brief The four numbers from p[0] + at on, then those from p[4] + at on, and so on. */
template <typename T>
inline Vec LoadQuads(const T* const* p, int64_t at) {
  return Load(p[0] + at);
}
/*! \brief The first number of each lane with two of bfloat16. */
inline Vec FirstOfPairs(Vec x) { return _mm_castsi128_ps(_mm_slli_epi32(_mm_castps_si128(x), 16)); }
/*! \brief The second one. */
inline Vec SecondOfPairs(Vec x) {
  return _mm_castsi128_ps(_mm_and_si128(_mm_castps_si128(x), _mm_set1_epi32(-65536)));
}
/*! \brief Transposes the 4 x 4 numbers in each quarter (of four lanes) of four vectors. */
inline void TransposeQuads(Vec* x) { _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]); }

/*! \brief op over the lanes of a, b, c and d, in one fixed order, to out[0..3]. */
template <typename Op>
inline void StoreFolded(float* out, Vec a, Vec b, Vec c, Vec d, Op op) {
  const Vec ab = op(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
  const Vec cd = op(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
  const Vec low = _mm_castpd_ps(_mm_unpacklo_pd(_mm_castps_pd(ab), _mm_castps_pd(cd)));
  const Vec high = _mm_castpd_ps(_mm_unpackhi_pd(_mm_castps_pd(ab), _mm_castps_pd(cd)));
  _mm_storeu_ps(out, op(low, high));
}
/*! \brief x, loaded once: GCC would reload an operand of several sums for each. */
inline Vec InRegister(Vec x) {
  __asm__("" : "+x"(x));
  return x;
}
/*! \brief Prefetches into all cache levels. In assembler: GCC takes a function that only prefetches
 * for one without effect, and removes its calls unless it inlines them early. */
inline void Prefetch(uintptr_t p) {
  __asm__ volatile("prefetcht0 %0" : : "m"(*reinterpret_cast<const char*>(p)));
}
/*! \brief Prefetches into all cache levels but the first. */
inline void PrefetchFar(uintptr_t p) {
  __asm__ volatile("prefetcht1 %0" : : "m"(*reinterpret_cast<const char*>(p)));
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SIMD_VEC_BASELINE_INL_H_
