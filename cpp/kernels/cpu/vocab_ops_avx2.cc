// The loops of core/vocab_ops.h for AVX2 and FMA: operation for operation what the scalar ones do.
#include <immintrin.h>

#include "core/exact_math.h"
#include "core/vocab_ops.h"

namespace kvctl {

int32_t GumbelAvx2(const float* exps, int32_t first_token, int32_t n, const NoiseKey& key,
                   double* best);  // gumbel_avx2.cc

namespace {

// Everything here has internal linkage: nothing compiled for AVX2 may serve other files.

struct Pair {
  __m256d low, high;
};

inline Pair ToDoubles(__m256 x) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
}

inline __m256d RoundDoubles(__m256d x) {
  const __m256d round = _mm256_set1_pd(kRoundDouble);
  return _mm256_sub_pd(_mm256_add_pd(x, round), round);
}

inline double HorizontalSum(__m256d x) {
  double lanes[4];
  _mm256_storeu_pd(lanes, x);
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);  // integers: any order is exact
}

// Up to 8 floats, the lanes behind n filled.
inline __m256 LoadPart(const float* p, int32_t n, float fill) {
  float lanes[8];
  for (int32_t i = 0; i < 8; ++i) lanes[i] = i < n ? p[i] : fill;
  return _mm256_loadu_ps(lanes);
}

float Max(const float* logits, int32_t n) {
  const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
  __m256 max[4] = {lowest, lowest, lowest, lowest};
  int32_t i = 0;
  // The second operand is what max_ps returns for a NaN.
  for (; i + 32 <= n; i += 32) {
    for (int j = 0; j < 4; ++j) max[j] = _mm256_max_ps(_mm256_loadu_ps(logits + i + 8 * j), max[j]);
  }
  for (; i < n; i += 8) {
    max[0] = _mm256_max_ps(
        i + 8 <= n ? _mm256_loadu_ps(logits + i) : LoadPart(logits + i, n - i, -__builtin_inff()),
        max[0]);
  }
  float lanes[8];
  _mm256_storeu_ps(lanes,
                   _mm256_max_ps(_mm256_max_ps(max[0], max[1]), _mm256_max_ps(max[2], max[3])));
  float best = lanes[0];
  for (int j = 1; j < 8; ++j) best = lanes[j] > best ? lanes[j] : best;
  return best;
}

int32_t Find(const float* logits, int32_t n, float value) {
  const __m256 wanted = _mm256_set1_ps(value);
  int32_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const int mask =
        _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(logits + i), wanted, _CMP_EQ_OQ));
    if (mask != 0) return i + __builtin_ctz(static_cast<unsigned>(mask));
  }
  for (; i < n; ++i) {
    if (logits[i] == value) return i;
  }
  return -1;
}

inline __m256 Exp2Scaled8(__m256 logits, __m256 scale, __m256 minus_shift) {
  __m256 y = _mm256_fmadd_ps(logits, scale, minus_shift);
  y = _mm256_max_ps(y, _mm256_set1_ps(kMinExponent));  // NaN too
  const __m256 round = _mm256_set1_ps(kRoundFloat);
  const __m256 shifted = _mm256_add_ps(y, round);
  const __m256 f = _mm256_sub_ps(y, _mm256_sub_ps(shifted, round));
  __m256 p = _mm256_set1_ps(kExp2Poly[0]);
  for (int i = 1; i < 7; ++i) p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2Poly[i]));
  const __m256i exponent =
      _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(kExpBits));
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(exponent, 23)));
}

// Adds the bit patterns of 2^52 + exps: the caller takes the 2^52s off the sum again.
inline void AddFixed(__m256 exps, __m256i* sum) {
  const __m256d round = _mm256_set1_pd(kRoundDouble);
  const Pair e = ToDoubles(exps);
  sum[0] = _mm256_add_epi64(sum[0], _mm256_castpd_si256(_mm256_add_pd(e.low, round)));
  sum[1] = _mm256_add_epi64(sum[1], _mm256_castpd_si256(_mm256_add_pd(e.high, round)));
}

template <bool kStore>
uint64_t ExpSumOf(const float* logits, int32_t n, float scale, float shift, float* exps) {
  const __m256 scale8 = _mm256_set1_ps(scale), minus_shift = _mm256_set1_ps(-shift);
  __m256i sums[4] = {};
  uint64_t lanes_added = 0;
  int32_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256 a = Exp2Scaled8(_mm256_loadu_ps(logits + i), scale8, minus_shift);
    const __m256 b = Exp2Scaled8(_mm256_loadu_ps(logits + i + 8), scale8, minus_shift);
    if (kStore) {
      _mm256_storeu_ps(exps + i, a);
      _mm256_storeu_ps(exps + i + 8, b);
    }
    AddFixed(a, sums);
    AddFixed(b, sums + 2);
    lanes_added += 16;
  }
  for (; i < n; i += 8) {
    const __m256 a =
        Exp2Scaled8(LoadPart(logits + i, n - i, -__builtin_inff()), scale8, minus_shift);
    if (kStore) {
      float lanes[8];
      _mm256_storeu_ps(lanes, a);
      for (int32_t j = 0; j < 8 && i + j < n; ++j) exps[i + j] = lanes[j];
    }
    AddFixed(a, sums);  // what stands in for missing logits weighs 0
    lanes_added += 8;
  }
  uint64_t lanes[4];
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(lanes),
      _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3])));
  constexpr uint64_t kRoundBits = uint64_t{1075} << 52;  // kRoundDouble's bit pattern
  return lanes[0] + lanes[1] + lanes[2] + lanes[3] - lanes_added * kRoundBits;
}

uint64_t ExpSum(const float* logits, int32_t n, float scale, float shift, float* exps) {
  return exps == nullptr ? ExpSumOf<false>(logits, n, scale, shift, exps)
                         : ExpSumOf<true>(logits, n, scale, shift, exps);
}

double WeightsFromExps(const float* exps, int32_t n, double factor, double* out) {
  const __m256d factor4 = _mm256_set1_pd(factor), round = _mm256_set1_pd(kRoundDouble);
  __m256d sum = _mm256_setzero_pd();
  int32_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const __m256d weight = RoundDoubles(_mm256_cvtps_pd(_mm_loadu_ps(exps + i)));
    const __m256d w = _mm256_sub_pd(_mm256_fmadd_pd(weight, factor4, round), round);
    _mm256_storeu_pd(out + i, w);
    sum = _mm256_add_pd(sum, w);
  }
  double total = HorizontalSum(sum);
  for (; i < n; ++i) {
    const double weight = (static_cast<double>(exps[i]) + kRoundDouble) - kRoundDouble;
    out[i] = FMA(weight, factor, kRoundDouble) - kRoundDouble;
    total += out[i];
  }
  return total;
}

inline __m256d LoadAsDoubles(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
inline __m256d LoadAsDoubles(const double* p) { return _mm256_loadu_pd(p); }

template <typename T>
double WeightsFromProbs(const T* probs, int32_t n, double* out) {
  const __m256d scale = _mm256_set1_pd(kProbScale), most = _mm256_set1_pd(1.001);
  __m256d sum = _mm256_setzero_pd(), valid = _mm256_castsi256_pd(_mm256_set1_epi64x(-1));
  int32_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const __m256d p = LoadAsDoubles(probs + i);
    valid = _mm256_and_pd(valid, _mm256_cmp_pd(p, _mm256_setzero_pd(), _CMP_GE_OQ));
    valid = _mm256_and_pd(valid, _mm256_cmp_pd(p, most, _CMP_LE_OQ));
    const __m256d w = RoundDoubles(_mm256_mul_pd(p, scale));
    if (out != nullptr) _mm256_storeu_pd(out + i, w);
    sum = _mm256_add_pd(sum, w);
  }
  bool all_valid = _mm256_movemask_pd(valid) == 15;
  double total = HorizontalSum(sum);
  for (; i < n; ++i) {
    const double p = static_cast<double>(probs[i]);
    all_valid &= p >= 0 && p <= 1.001;
    const double w = ToGrid(p);
    if (out != nullptr) out[i] = w;
    total += w;
  }
  return all_valid ? total : __builtin_nan("");
}

double Subtract(const double* r, const double* d, int32_t n, double a, double b, double* out) {
  const __m256d a4 = _mm256_set1_pd(a), b4 = _mm256_set1_pd(b);
  __m256d sum = _mm256_setzero_pd();
  int32_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const __m256d bd = _mm256_mul_pd(b4, _mm256_loadu_pd(d + i));
    const __m256d ar_bd = _mm256_fmsub_pd(a4, _mm256_loadu_pd(r + i), bd);
    const __m256d w = RoundDoubles(_mm256_max_pd(ar_bd, _mm256_setzero_pd()));
    if (out != nullptr) _mm256_storeu_pd(out + i, w);
    sum = _mm256_add_pd(sum, w);
  }
  double total = HorizontalSum(sum);
  for (; i < n; ++i) {
    double w = FMA(a, r[i], -(b * d[i]));
    w = w > 0 ? (w + kRoundDouble) - kRoundDouble : 0.0;
    if (out != nullptr) out[i] = w;
    total += w;
  }
  return total;
}

void FromF16(const uint16_t* values, int32_t n, float* out) {
  int32_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
  }
  for (; i < n; ++i) out[i] = _cvtsh_ss(values[i]);
}

void FromBF16(const uint16_t* values, int32_t n, float* out) {
  int32_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i));
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
    _mm256_storeu_ps(out + i, _mm256_castsi256_ps(bits));
  }
  for (; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(values[i]) << 16;
    __builtin_memcpy(out + i, &bits, sizeof(bits));
  }
}

}  // namespace

const VocabOps& Avx2VocabOps() {
  static const VocabOps ops = {Max,
                               Find,
                               ExpSum,
                               WeightsFromExps,
                               WeightsFromProbs<float>,
                               WeightsFromProbs<double>,
                               Subtract,
                               FromF16,
                               FromBF16,
                               GumbelAvx2};
  return ops;
}

}  // namespace kvctl
