/*!
 * \file kernels/cpu/simd/vec_avx2-inl.h
 * \brief Vectors of eight floats. Included by vec-inl.h; vec_baseline-inl.h says what each function
 * does.
 */
#ifndef KVCTL_KERNELS_CPU_SIMD_VEC_AVX2_INL_H_
#define KVCTL_KERNELS_CPU_SIMD_VEC_AVX2_INL_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/convert.h"

namespace kvctl {
namespace {

constexpr int kLanes = 8;
constexpr int32_t kScoreQueries = 6;  // of scores: times two accumulators fit the registers
constexpr int32_t kValueQueries = 4;  // of sums of values...
constexpr int32_t kValueVectors = 2;  // ... times this many accumulators

using Vec = __m256;

inline Vec Zero() { return _mm256_setzero_ps(); }
inline Vec Set(float x) { return _mm256_set1_ps(x); }
inline Vec Load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec Load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec Load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec Load(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
inline void Store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline Vec Add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec Sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec Mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec Div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec Fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec FmaInPlace(Vec a, Vec b, Vec sum) { return Fma(a, b, sum); }
inline Vec Max(Vec a, Vec b) { return _mm256_max_ps(a, b); }

inline Vec Select(uint64_t bits, Vec x, Vec y) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i chosen = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits & 255)), lane);
  return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(chosen, lane)));
}

inline Vec CopySign(Vec magnitude, Vec sign) {
  const Vec bit = _mm256_set1_ps(-0.f);
  return _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign));
}
inline Vec RoundToInt(Vec x) { return _mm256_cvtepi32_ps(_mm256_cvtps_epi32(x)); }
inline Vec Scale2(Vec value, Vec x, Vec least) {
  const __m256i shifted = _mm256_slli_epi32(_mm256_cvtps_epi32(x), 23);
  const __m256i scaled = _mm256_add_epi32(_mm256_castps_si256(value), shifted);
  return _mm256_andnot_ps(_mm256_cmp_ps(x, least, _CMP_LT_OQ), _mm256_castsi256_ps(scaled));
}

inline __m128i LoadHalfQuads(const void* a, const void* b) {
  const __m128i low = _mm_loadl_epi64(static_cast<const __m128i*>(a));
  return _mm_unpacklo_epi64(low, _mm_loadl_epi64(static_cast<const __m128i*>(b)));
}
inline Vec LoadQuads(const float* const* p, int64_t at) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p[0] + at)),
                              _mm_loadu_ps(p[4] + at), 1);
}
inline Vec LoadQuads(const Float16* const* p, int64_t at) {
  return _mm256_cvtph_ps(LoadHalfQuads(p[0] + at, p[4] + at));
}
inline Vec LoadQuads(const BFloat16* const* p, int64_t at) {
  const __m128i bits = LoadHalfQuads(p[0] + at, p[4] + at);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec FirstOfPairs(Vec x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 16));
}
inline Vec SecondOfPairs(Vec x) {
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(-65536)));
}
inline void TransposeQuads(Vec* x) {
  const Vec a = _mm256_unpacklo_ps(x[0], x[1]), b = _mm256_unpackhi_ps(x[0], x[1]);
  const Vec c = _mm256_unpacklo_ps(x[2], x[3]), d = _mm256_unpackhi_ps(x[2], x[3]);
  x[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(c)));
  x[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(c)));
  x[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(b), _mm256_castps_pd(d)));
  x[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(b), _mm256_castps_pd(d)));
}

// Narrower ones, for StoreFolded.
inline __m128 Add(__m128 a, __m128 b) { return _mm_add_ps(a, b); }
inline __m128 Max(__m128 a, __m128 b) { return _mm_max_ps(a, b); }

template <typename Op>
inline void StoreFolded(float* out, Vec a, Vec b, Vec c, Vec d, Op op) {
  const Vec ab = op(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const Vec cd = op(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const Vec low = _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd)));
  const Vec high = _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd)));
  const Vec all = op(low, high);
  _mm_storeu_ps(out, op(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
inline Vec InRegister(Vec x) {
  __asm__("" : "+x"(x));
  return x;
}
inline void Prefetch(uintptr_t p) {
  __asm__ volatile("prefetcht0 %0" : : "m"(*reinterpret_cast<const char*>(p)));
}
inline void PrefetchFar(uintptr_t p) {
  __asm__ volatile("prefetcht1 %0" : : "m"(*reinterpret_cast<const char*>(p)));
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SIMD_VEC_AVX2_INL_H_
