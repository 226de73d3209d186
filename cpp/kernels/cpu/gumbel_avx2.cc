// Gumbel-max sampling for AVX2 and FMA: operation for operation what VocabOps::gumbel says.
#include <immintrin.h>

#include "core/exact_math.h"
#include "core/philox.h"
#include "kernels/cpu/vocab_units.h"

namespace kvctl {
namespace {

inline __m256d RoundDoubles(__m256d x) {
  const __m256d round = _mm256_set1_pd(kRoundDouble);
  return _mm256_sub_pd(_mm256_add_pd(x, round), round);
}

// Up to 8 floats, zeros behind n.
inline __m256 LoadPart(const float* p, int32_t n) {
  float lanes[8];
  for (int32_t i = 0; i < 8; ++i) lanes[i] = i < n ? p[i] : 0.0f;
  return _mm256_loadu_ps(lanes);
}

// Low and high halves of the products of 8 words with one.
inline void Multiply(__m256i x, uint32_t factor, __m256i* low, __m256i* high) {
  const __m256i f = _mm256_set1_epi32(static_cast<int32_t>(factor));
  const __m256i even = _mm256_mul_epu32(x, f);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), f);
  *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}

struct Words {
  __m256i w[4];
};

// Philox4x32-10 for 8 consecutive values of counter word 0.
inline Words Philox8(uint32_t first, const NoiseKey& key) {
  const __m256i step = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i c0 = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int32_t>(first)), step);
  __m256i c1 = _mm256_set1_epi32(static_cast<int32_t>(key.counter[0]));
  __m256i c2 = _mm256_set1_epi32(static_cast<int32_t>(key.counter[1]));
  __m256i c3 = _mm256_set1_epi32(static_cast<int32_t>(key.counter[2]));
  uint32_t k0 = key.key[0], k1 = key.key[1];
  for (int round = 0; round < 10; ++round) {
    __m256i low0, high0, low1, high1;
    Multiply(c0, kPhiloxMul0, &low0, &high0);
    Multiply(c2, kPhiloxMul1, &low1, &high1);
    c0 = _mm256_xor_si256(_mm256_xor_si256(high1, c1), _mm256_set1_epi32(static_cast<int32_t>(k0)));
    c2 = _mm256_xor_si256(_mm256_xor_si256(high0, c3), _mm256_set1_epi32(static_cast<int32_t>(k1)));
    c1 = low1;
    c3 = low0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

inline __m256d Select(__m256d if_false, __m256d if_true, __m256d mask) {
  return _mm256_blendv_pd(if_false, if_true, mask);
}

// ExactLog of 4 positive normal doubles.
inline __m256d Log4(__m256d x) {
  const __m256i bits = _mm256_castpd_si256(x);
  const __m256i mantissa = _mm256_and_si256(bits, _mm256_set1_epi64x(0x000fffffffffffffll));
  __m256d m =
      _mm256_castsi256_pd(_mm256_or_si256(mantissa, _mm256_set1_epi64x(0x3ff0000000000000ll)));
  // The biased exponent becomes a double through the mantissa of 2^52.
  const __m256i biased = _mm256_or_si256(_mm256_srli_epi64(bits, 52),
                                         _mm256_castpd_si256(_mm256_set1_pd(kRoundDouble)));
  __m256d e = _mm256_sub_pd(_mm256_castsi256_pd(biased), _mm256_set1_pd(kRoundDouble + 1023.0));
  const __m256d one = _mm256_set1_pd(1.0);
  const __m256d large = _mm256_cmp_pd(m, _mm256_set1_pd(kSqrt2), _CMP_GE_OQ);
  m = Select(m, _mm256_mul_pd(m, _mm256_set1_pd(0.5)), large);
  e = Select(e, _mm256_add_pd(e, one), large);
  const __m256d s = _mm256_div_pd(_mm256_sub_pd(m, one), _mm256_add_pd(m, one));
  const __m256d z = _mm256_mul_pd(s, s);
  __m256d p = _mm256_set1_pd(kLogPoly[0]);
  for (int i = 1; i < 11; ++i) p = _mm256_fmadd_pd(p, z, _mm256_set1_pd(kLogPoly[i]));
  const __m256d low = _mm256_mul_pd(e, _mm256_set1_pd(kLn2Lo));
  return _mm256_fmadd_pd(e, _mm256_set1_pd(kLn2Hi), _mm256_fmadd_pd(s, p, low));
}

// E / weight for 4 tokens: the 64 random bits of each, and its weight.
inline __m256d Scores(__m256i bits, __m256d weights) {
  const __m256i unit =
      _mm256_or_si256(_mm256_srli_epi64(bits, 12), _mm256_castpd_si256(_mm256_set1_pd(1.0)));
  const __m256d u = _mm256_add_pd(_mm256_sub_pd(_mm256_castsi256_pd(unit), _mm256_set1_pd(1.0)),
                                  _mm256_set1_pd(0x1p-53));
  const __m256d minus_log = _mm256_xor_pd(Log4(u), _mm256_set1_pd(-0.0));
  return _mm256_div_pd(minus_log, weights);  // weight 0: infinity
}

}  // namespace

int32_t GumbelAvx2(const float* exps, int32_t first_token, int32_t n, const NoiseKey& key,
                   double* best) {
  int32_t winner = -1;
  const auto consider = [&](__m256d scores, const int32_t* tokens) {
    const __m256d promising = _mm256_cmp_pd(scores, _mm256_set1_pd(*best), _CMP_LE_OQ);
    if (_mm256_movemask_pd(promising) == 0) return;
    double lanes[4];
    _mm256_storeu_pd(lanes, scores);
    for (int j = 0; j < 4; ++j) {
      if (lanes[j] < *best || (lanes[j] == *best && tokens[j] < winner)) {
        *best = lanes[j];
        winner = tokens[j];
      }
    }
  };
  const __m256 half = _mm256_set1_ps(0.5f);
  for (int32_t i = 0; i < n; i += 16) {
    __m256 e[2];
    for (int j = 0; j < 2; ++j) {
      const int32_t left = n - i - 8 * j;
      e[j] = left >= 8 ? _mm256_loadu_ps(exps + i + 8 * j) : LoadPart(exps + i + 8 * j, left);
    }
    if (_mm256_movemask_ps(_mm256_cmp_ps(_mm256_max_ps(e[0], e[1]), half, _CMP_GT_OQ)) == 0) {
      continue;  // nothing here weighs anything: common after top-k
    }
    const uint32_t token = static_cast<uint32_t>(first_token + i);
    const Words words = Philox8(key.counter0 + token / 2, key);
    for (int parity = 0; parity < 2; ++parity) {
      const __m256i low = words.w[2 * parity], high = words.w[2 * parity + 1];
      // Blocks 0 1 4 5 and 2 3 6 7: what unpack leaves in each 128-bit half.
      const __m256i bits[2] = {_mm256_unpacklo_epi32(low, high), _mm256_unpackhi_epi32(low, high)};
      float lanes[16];
      _mm256_storeu_ps(lanes, e[0]);
      _mm256_storeu_ps(lanes + 8, e[1]);
      for (int h = 0; h < 2; ++h) {
        int32_t tokens[4];
        double weights[4];
        for (int j = 0; j < 4; ++j) {
          const int block = (j < 2 ? j : j + 2) + 2 * h;
          tokens[j] = static_cast<int32_t>(token) + 2 * block + parity;
          weights[j] = static_cast<double>(lanes[2 * block + parity]);
        }
        consider(Scores(bits[h], RoundDoubles(_mm256_loadu_pd(weights))), tokens);
      }
    }
  }
  return winner;
}

}  // namespace kvctl
