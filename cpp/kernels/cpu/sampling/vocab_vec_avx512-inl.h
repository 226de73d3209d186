/*!
 * \file kernels/cpu/sampling/vocab_vec_avx512-inl.h
 * \brief Integer and double vectors for the loops over the vocabulary, beside those of
 * vec_avx512-inl.h; vocab_vec_avx2-inl.h says what each function does.
 */
#ifndef KVCTL_KERNELS_CPU_SAMPLING_VOCAB_VEC_AVX512_INL_H_
#define KVCTL_KERNELS_CPU_SAMPLING_VOCAB_VEC_AVX512_INL_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/simd/vec_avx512-inl.h"

namespace kvctl {
namespace {

using Ints = __m512i;
using Doubles = __m512d;

inline Ints AsInts(Vec x) { return _mm512_castps_si512(x); }
inline Ints AsInts(Doubles x) { return _mm512_castpd_si512(x); }
inline Vec AsVec(Ints x) { return _mm512_castsi512_ps(x); }
inline Ints SetInts(uint32_t x) { return _mm512_set1_epi32(static_cast<int32_t>(x)); }
inline Ints Add32(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints Add64(Ints a, Ints b) { return _mm512_add_epi64(a, b); }
template <int kBits>
inline Ints ShiftLeft32(Ints x) {
  return _mm512_slli_epi32(x, kBits);
}
inline Ints MaxUnsigned32(Ints a, Ints b) { return _mm512_max_epu32(a, b); }
template <typename T>
inline void StoreInts(T* p, Ints x) {
  _mm512_storeu_si512(p, x);
}

inline Vec RoundEven(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
inline uint32_t EqualLanes(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }

inline Doubles LowDoubles(Vec x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
inline Doubles HighDoubles(Vec x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }
inline Doubles SetDoubles(double x) { return _mm512_set1_pd(x); }
inline Doubles LoadDoubles(const double* p) { return _mm512_loadu_pd(p); }
inline void StoreDoubles(double* p, Doubles x) { _mm512_storeu_pd(p, x); }
inline Doubles Add(Doubles a, Doubles b) { return _mm512_add_pd(a, b); }
inline Doubles Sub(Doubles a, Doubles b) { return _mm512_sub_pd(a, b); }
inline Doubles Mul(Doubles a, Doubles b) { return _mm512_mul_pd(a, b); }
inline Doubles Fma(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
inline Doubles Fms(Doubles a, Doubles b, Doubles c) { return _mm512_fmsub_pd(a, b, c); }
inline Doubles Max(Doubles a, Doubles b) { return _mm512_maskz_max_pd(0xff, a, b); }
inline Ints Within(Doubles x, Doubles low, Doubles high) {
  const __mmask8 above = _mm512_cmp_pd_mask(x, low, _CMP_GE_OQ);
  return _mm512_maskz_set1_epi64(_mm512_mask_cmp_pd_mask(above, x, high, _CMP_LE_OQ), -1);
}
inline Ints And(Ints a, Ints b) { return _mm512_and_si512(a, b); }

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SAMPLING_VOCAB_VEC_AVX512_INL_H_
