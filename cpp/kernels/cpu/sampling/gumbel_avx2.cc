// Gumbel-max sampling for AVX2 and FMA: draws the random bits of every token, but takes the
// logarithm only of those that may win.
#include <immintrin.h>

#include "core/support/exact_math.h"
#include "core/support/philox.h"
#include "kernels/cpu/sampling/vocab_units.h"

namespace kvctl {
namespace {

// Philox4x32-10 in 64-bit lanes whose upper halves are ignored: four blocks per vector.
struct Blocks {
  __m256i c0, c1, c2, c3;
};

inline __m256i Set32(uint32_t x) { return _mm256_set1_epi32(static_cast<int32_t>(x)); }

inline Blocks FirstBlocks(uint32_t counter0, const NoiseKey& key) {
  const __m256i step = _mm256_setr_epi64x(0, 1, 2, 3);
  return {_mm256_add_epi32(Set32(counter0), step), Set32(key.counter[0]), Set32(key.counter[1]),
          Set32(key.counter[2])};
}

inline void Round(__m256i k0, __m256i k1, Blocks* b) {
  const __m256i product0 = _mm256_mul_epu32(b->c0, Set32(kPhiloxMul0));
  const __m256i product1 = _mm256_mul_epu32(b->c2, Set32(kPhiloxMul1));
  b->c0 = _mm256_xor_si256(_mm256_srli_epi64(product1, 32), _mm256_xor_si256(b->c1, k0));
  b->c2 = _mm256_xor_si256(_mm256_srli_epi64(product0, 32), _mm256_xor_si256(b->c3, k1));
  b->c1 = product1;
  b->c3 = product0;
}

/*!
 * \brief Finds which of 8 tokens may score `best` or less, from the upper words of their random
 * bits.
 *
 * Noise is -log(u) >= 1 - u, and 1 - u is at least 2^-31 times the upper 31 bits of ~bits. The
 * rounding error of floats is far below the factor in `limit`.
 *
 * \param limit 2^31 best (1 + 2^-20)
 */
inline uint32_t Promising(const Blocks& b, __m256 exps, __m256 limit) {
  const __m256i upper = _mm256_blend_epi32(b.c1, _mm256_slli_epi64(b.c3, 32), 0xAA);
  const __m256i bits = _mm256_srli_epi32(_mm256_xor_si256(upper, _mm256_set1_epi32(-1)), 1);
  const __m256 weights = _mm256_round_ps(exps, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 reach = _mm256_mul_ps(weights, limit);
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps(_mm256_cvtepi32_ps(bits), reach, _CMP_LE_OQ)));
}

}  // namespace

int32_t GumbelAvx2(const float* exps, int32_t first_token, int32_t n, const NoiseKey& key,
                   double* best) {
  constexpr int kVectors = 2;  // interleaved to hide the latency of the products
  constexpr int32_t kTokens = 8 * kVectors;
  __m256i keys[10][2];
  for (uint32_t r = 0; r < 10; ++r) {
    keys[r][0] = Set32(key.key[0] + r * kPhiloxWeyl0);
    keys[r][1] = Set32(key.key[1] + r * kPhiloxWeyl1);
  }
  int32_t winner = -1;
  const auto consider = [&](int32_t token) {
    const uint64_t weight = ToFixed(exps[token - first_token]);
    if (weight == 0) return;
    const double score = GumbelScore(token, weight, key);
    if (score < *best || (score == *best && token < winner)) {
      *best = score;
      winner = token;
    }
  };
  // A block of random words is for two tokens, an even one and the next.
  int32_t i = 0;
  for (; i < n && (first_token + i) % 2 != 0; ++i) consider(first_token + i);
  const __m256 half = _mm256_set1_ps(0.5f);
  for (; i + kTokens <= n; i += kTokens) {
    __m256 e[kVectors], most = _mm256_setzero_ps();
    for (int j = 0; j < kVectors; ++j) {
      e[j] = _mm256_loadu_ps(exps + i + 8 * j);
      most = _mm256_max_ps(most, e[j]);
    }
    if (_mm256_movemask_ps(_mm256_cmp_ps(most, half, _CMP_GT_OQ)) == 0) {
      continue;  // all weights are 0: common after top-k
    }
    const int32_t token = first_token + i;
    Blocks b[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      b[j] = FirstBlocks(key.counter0 + static_cast<uint32_t>(token) / 2 + 4 * j, key);
    }
    for (const auto& k : keys) {
      for (int j = 0; j < kVectors; ++j) Round(k[0], k[1], &b[j]);
    }
    for (int j = 0; j < kVectors; ++j) {
      const __m256 limit = _mm256_set1_ps(static_cast<float>(*best * (0x1p31 + 0x1p11)));
      for (uint32_t left = Promising(b[j], e[j], limit); left != 0; left &= left - 1) {
        consider(token + 8 * j + __builtin_ctz(left));
      }
    }
  }
  for (; i < n; ++i) consider(first_token + i);
  return winner;
}

}  // namespace kvctl
