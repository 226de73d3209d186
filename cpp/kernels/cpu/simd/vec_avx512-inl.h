/*!
 * \file kernels/cpu/simd/vec_avx512-inl.h
 * \brief Vectors of sixteen floats. Included by vec-inl.h; vec_baseline-inl.h says what each
 * function does.
 */
#ifndef KVCTL_KERNELS_CPU_SIMD_VEC_AVX512_INL_H_
#define KVCTL_KERNELS_CPU_SIMD_VEC_AVX512_INL_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/convert.h"

namespace kvctl {
namespace {

constexpr int kLanes = 16;
constexpr int32_t kScoreQueries = 12;  // of scores: times two accumulators fit the registers
constexpr int32_t kValueQueries = 6;   // of sums of values...
constexpr int32_t kValueVectors = 4;   // ... times this many accumulators

using Vec = __m512;

inline Vec Zero() { return _mm512_setzero_ps(); }
inline Vec Set(float x) { return _mm512_set1_ps(x); }
inline Vec Load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec Load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec Load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Vec Load(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
inline void Store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec Sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec Mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec Div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec Fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec FmaInPlace(Vec a, Vec b, Vec sum) {
  __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
inline Vec Max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec Select(uint64_t bits, Vec x, Vec y) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), y, x);
}
inline Vec CopySign(Vec magnitude, Vec sign) {
  const Vec bit = _mm512_set1_ps(-0.f);
  return _mm512_or_ps(_mm512_andnot_ps(bit, magnitude), _mm512_and_ps(bit, sign));
}
inline Vec RoundToInt(Vec x) { return _mm512_cvtepi32_ps(_mm512_cvtps_epi32(x)); }
inline Vec Scale2(Vec value, Vec x, Vec least) {
  const __m512i shifted = _mm512_slli_epi32(_mm512_cvtps_epi32(x), 23);
  const __mmask16 above = _mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ);
  return _mm512_castsi512_ps(_mm512_maskz_add_epi32(above, _mm512_castps_si512(value), shifted));
}

inline __m128i LoadHalfQuads(const void* a, const void* b) {
  const __m128i low = _mm_loadl_epi64(static_cast<const __m128i*>(a));
  return _mm_unpacklo_epi64(low, _mm_loadl_epi64(static_cast<const __m128i*>(b)));
}

// Narrower ones, for StoreFolded.
inline __m128 Add(__m128 a, __m128 b) { return _mm_add_ps(a, b); }
inline __m128 Max(__m128 a, __m128 b) { return _mm_max_ps(a, b); }
inline __m256 Add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
inline __m256 Max(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }

template <typename Op>
inline void StoreFolded(float* out, Vec a, Vec b, Vec c, Vec d, Op op) {
  const Vec ab = op(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const Vec cd = op(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const Vec low = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd)));
  const Vec high = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd)));
  const Vec all = op(low, high);
  const __m256 half = op(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(out, op(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

inline Vec JoinQuads(__m128 a, __m128 b, __m128 c, __m128 d) {
  Vec x = _mm512_castps128_ps512(a);
  x = _mm512_mask_broadcast_f32x4(x, 0x00f0, b);
  x = _mm512_mask_broadcast_f32x4(x, 0x0f00, c);
  return _mm512_mask_broadcast_f32x4(x, 0xf000, d);
}
inline __m256i JoinHalfQuads(const void* a, const void* b, const void* c, const void* d) {
  const __m128i low = LoadHalfQuads(a, b);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), LoadHalfQuads(c, d), 1);
}
inline Vec LoadQuads(const float* const* p, int64_t at) {
  return JoinQuads(_mm_loadu_ps(p[0] + at), _mm_loadu_ps(p[4] + at), _mm_loadu_ps(p[8] + at),
                   _mm_loadu_ps(p[12] + at));
}
inline Vec LoadQuads(const Float16* const* p, int64_t at) {
  return _mm512_cvtph_ps(JoinHalfQuads(p[0] + at, p[4] + at, p[8] + at, p[12] + at));
}
inline Vec LoadQuads(const BFloat16* const* p, int64_t at) {
  const __m256i bits = JoinHalfQuads(p[0] + at, p[4] + at, p[8] + at, p[12] + at);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Vec FirstOfPairs(Vec x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 16));
}
inline Vec SecondOfPairs(Vec x) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(-65536)));
}
inline void TransposeQuads(Vec* x) {
  const Vec a = _mm512_unpacklo_ps(x[0], x[1]), b = _mm512_unpackhi_ps(x[0], x[1]);
  const Vec c = _mm512_unpacklo_ps(x[2], x[3]), d = _mm512_unpackhi_ps(x[2], x[3]);
  x[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
  x[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
  x[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
  x[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
}
inline Vec InRegister(Vec x) {
  __asm__("" : "+v"(x));
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

#endif  // KVCTL_KERNELS_CPU_SIMD_VEC_AVX512_INL_H_
