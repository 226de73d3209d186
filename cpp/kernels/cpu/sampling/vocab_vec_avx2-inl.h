/*!
 * \file kernels/cpu/sampling/vocab_vec_avx2-inl.h
 * \brief Integer and double vectors for the loops over the vocabulary, beside those of
 * vec_avx2-inl.h.
 */
#ifndef KVCTL_KERNELS_CPU_SAMPLING_VOCAB_VEC_AVX2_INL_H_
#define KVCTL_KERNELS_CPU_SAMPLING_VOCAB_VEC_AVX2_INL_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/simd/vec_avx2-inl.h"

namespace kvctl {
namespace {

using Ints = __m256i;     // as many 32-bit integers as a Vec has floats, or half as many of 64 bits
using Doubles = __m256d;  // half as many as a Vec has floats

inline Ints AsInts(Vec x) { return _mm256_castps_si256(x); }
inline Ints AsInts(Doubles x) { return _mm256_castpd_si256(x); }
inline Vec AsVec(Ints x) { return _mm256_castsi256_ps(x); }
inline Ints SetInts(uint32_t x) { return _mm256_set1_epi32(static_cast<int32_t>(x)); }
inline Ints Add32(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints Add64(Ints a, Ints b) { return _mm256_add_epi64(a, b); }
template <int kBits>
inline Ints ShiftLeft32(Ints x) {
  return _mm256_slli_epi32(x, kBits);
}
inline Ints MaxUnsigned32(Ints a, Ints b) { return _mm256_max_epu32(a, b); }
template <typename T>
inline void StoreInts(T* p, Ints x) {
  _mm256_storeu_si256(reinterpret_cast<Ints*>(p), x);
}

inline Vec RoundEven(Vec x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/*! \brief Bit i is set where lane i of a equals that of b. */
inline uint32_t EqualLanes(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)));
}

inline Doubles LowDoubles(Vec x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
inline Doubles HighDoubles(Vec x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
inline Doubles SetDoubles(double x) { return _mm256_set1_pd(x); }
inline Doubles LoadDoubles(const double* p) { return _mm256_loadu_pd(p); }
inline void StoreDoubles(double* p, Doubles x) { _mm256_storeu_pd(p, x); }
inline Doubles Add(Doubles a, Doubles b) { return _mm256_add_pd(a, b); }
inline Doubles Sub(Doubles a, Doubles b) { return _mm256_sub_pd(a, b); }
inline Doubles Mul(Doubles a, Doubles b) { return _mm256_mul_pd(a, b); }
inline Doubles Fma(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
/*! \brief a * b - c */
inline Doubles Fms(Doubles a, Doubles b, Doubles c) { return _mm256_fmsub_pd(a, b, c); }
/*! \brief b where either is NaN. */
inline Doubles Max(Doubles a, Doubles b) { return _mm256_max_pd(a, b); }
/*! \brief All bits where low <= x <= high, else none. */
inline Ints Within(Doubles x, Doubles low, Doubles high) {
  return AsInts(
      _mm256_and_pd(_mm256_cmp_pd(x, low, _CMP_GE_OQ), _mm256_cmp_pd(x, high, _CMP_LE_OQ)));
}
inline Ints And(Ints a, Ints b) { return _mm256_and_si256(a, b); }

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SAMPLING_VOCAB_VEC_AVX2_INL_H_
