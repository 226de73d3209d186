// The vector loops return the bits of the scalar ones for any input.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/sampling/distribution.h"
#include "core/sampling/vocab_ops.h"
#include "core/support/exact_math.h"
#include "kernels/sampling.h"

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> Logits(int n, std::mt19937& random, float spread) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(n);
  for (float& l : logits) {
    const unsigned kind = random() % 64;
    l = kind == 0 ? -kInfinity : kind == 1 ? std::nanf("") : kind == 2 ? 0.0f : normal(random);
  }
  return logits;
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace

TEST(VectorLoopsMatchScalarLoopsBitForBit) {
  const kvctl::VocabOps& scalar = kvctl::ScalarVocabOps();
  const kvctl::VocabOps& fast = kvctl::CpuVocabOps();
  std::mt19937 random(1);
  for (int trial = 0; trial < 2000; ++trial) {
    const int n = 1 + static_cast<int>(random() % 700);
    const std::vector<float> logits = Logits(n, random, trial % 3 == 0 ? 30.0f : 3.0f);
    const float max = scalar.max(logits.data(), n);
    EXPECT_EQ(fast.max(logits.data(), n), max);
    EXPECT_EQ(fast.find(logits.data(), n, max), scalar.find(logits.data(), n, max));
    if (max == -kInfinity) continue;
    const float scale = static_cast<float>(kvctl::kLog2E) * (trial % 5 == 0 ? 7.3f : 1.0f);
    const kvctl::ExpGrid grid = kvctl::MakeExpGrid(scale, std::ceil(max * scale));
    std::vector<float> e1(n), e2(n);
    const uint64_t sum = scalar.exp_sum(logits.data(), n, grid, e1.data());
    EXPECT_EQ(fast.exp_sum(logits.data(), n, grid, e2.data()), sum);
    EXPECT_EQ(fast.exp_sum(logits.data(), n, grid, nullptr), sum);
    EXPECT(SameBits(e1, e2));

    std::vector<double> w1(n), w2(n);
    const double factor = kvctl::kProbScale / static_cast<double>(sum);
    EXPECT_EQ(scalar.weights_from_exps(e1.data(), n, factor, w1.data()),
              fast.weights_from_exps(e1.data(), n, factor, w2.data()));
    EXPECT(SameBits(w1, w2));

    const kvctl::ExpTerms terms = {grid, factor};
    EXPECT_EQ(scalar.weights_from_logits(logits.data(), n, terms, w1.data()),
              fast.weights_from_logits(logits.data(), n, terms, w2.data()));
    EXPECT(SameBits(w1, w2));
    EXPECT_EQ(fast.weights_from_logits(logits.data(), n, terms, nullptr),
              fast.weights_from_exps(e1.data(), n, factor, nullptr));

    std::vector<float> probs(n);
    std::vector<double> probs64(n), d1(n), d2(n);
    for (int i = 0; i < n; ++i) {
      probs64[i] = std::uniform_real_distribution<double>(0, std::min(1.0, 2.0 / n))(random);
      probs[i] = static_cast<float>(probs64[i]);
    }
    EXPECT_EQ(scalar.weights_from_f32(probs.data(), n, d1.data()),
              fast.weights_from_f32(probs.data(), n, d2.data()));
    EXPECT(SameBits(d1, d2));
    EXPECT_EQ(scalar.weights_from_f64(probs64.data(), n, d1.data()),
              fast.weights_from_f64(probs64.data(), n, d2.data()));
    EXPECT(SameBits(d1, d2));
    const double a = (trial % 4 == 0 ? 1.0 : 0.7) * 1.0001, b = 0.9998;
    std::vector<double> s1(n), s2(n);
    EXPECT_EQ(scalar.subtract(w1.data(), d1.data(), n, a, b, s1.data()),
              fast.subtract(w1.data(), d1.data(), n, a, b, s2.data()));
    EXPECT(SameBits(s1, s2));

    const kvctl::RestTerms rest = {grid, kvctl::MakeRestFactors(a * factor, b)};
    const double residual =
        scalar.rest_from_logits(logits.data(), probs.data(), n, rest, s1.data());
    EXPECT_EQ(residual, fast.rest_from_logits(logits.data(), probs.data(), n, rest, s2.data()));
    EXPECT_EQ(residual, fast.rest_from_logits(logits.data(), probs.data(), n, rest, nullptr));
    EXPECT(SameBits(s1, s2));

    std::vector<float> masked1 = logits, masked2 = logits;
    std::vector<uint32_t> bits(n / 32 + 3);
    for (uint32_t& word : bits) word = static_cast<uint32_t>(random());
    const int first_bit = static_cast<int>(random() % 40);
    scalar.mask(bits.data(), first_bit, n, masked1.data());
    fast.mask(bits.data(), first_bit, n, masked2.data());
    EXPECT(SameBits(masked1, masked2));

    const kvctl::NoiseKey key = {{static_cast<uint32_t>(random()), 5u}, {9u, 7u, 1u}, 4u << 28};
    const int first = static_cast<int>(random() % 100);
    double best1 = std::numeric_limits<double>::infinity(), best2 = best1;
    EXPECT_EQ(scalar.gumbel(e1.data(), first, n, key, &best1),
              fast.gumbel(e1.data(), first, n, key, &best2));
    EXPECT_EQ(best1, best2);
  }
}

TEST(TheFirstLargestLogitIsFoundWhereverARowBeginsAndEnds) {
  const kvctl::VocabOps& scalar = kvctl::ScalarVocabOps();
  const kvctl::VocabOps& fast = kvctl::CpuVocabOps();
  std::mt19937 random(7);
  std::vector<float> logits(400);
  for (int begin = 0; begin < 17; ++begin) {
    for (int n = 1; n < 300; n += 1 + n / 40) {
      for (float& logit : logits) logit = static_cast<float>(random() % 64);
      for (int bad = 0; bad < 20; ++bad) logits[random() % logits.size()] = NAN;
      logits[begin + random() % n] = 99.0f;
      const float* row = logits.data() + begin;
      EXPECT_EQ(fast.max(row, n), scalar.max(row, n));
      EXPECT_EQ(fast.find(row, n, 99.0f), scalar.find(row, n, 99.0f));
      const float least = static_cast<float>(random() % 64);
      EXPECT_EQ(fast.find(row, n, least), scalar.find(row, n, least));
    }
  }
}

TEST(LongRowsAtTheLargestExponentialSumExactly) {
  // Every exponential is as large as the contract allows: the most that vector lanes can hold.
  const int n = 3 * kvctl::kVocabBlock + 5;
  const std::vector<float> logits(n, 0.5f);
  EXPECT_EQ(kvctl::CpuVocabOps().exp_sum(logits.data(), n, kvctl::MakeExpGrid(1, 0), nullptr),
            kvctl::ScalarVocabOps().exp_sum(logits.data(), n, kvctl::MakeExpGrid(1, 0), nullptr));
}

TEST(ProbabilitiesMayBeMinusZero) {
  const std::vector<float> probs = {0.5f, -0.0f, 0.5f, -0.0f, 0.0f, 0.0f, 0.0f, 0.0f, -0.0f};
  for (const kvctl::VocabOps* ops : {&kvctl::ScalarVocabOps(), &kvctl::CpuVocabOps()}) {
    EXPECT_EQ(ops->weights_from_f32(probs.data(), 9, nullptr), kvctl::kProbScale);
  }
}

TEST(VectorLoopsRefuseInvalidProbabilities) {
  for (const kvctl::VocabOps* ops : {&kvctl::ScalarVocabOps(), &kvctl::CpuVocabOps()}) {
    for (float bad : {-0.1f, 1.5f, std::nanf(""), kInfinity}) {
      for (int at : {0, 3, 8}) {
        std::vector<float> probs(9, 0.1f);
        probs[at] = bad;
        EXPECT(std::isnan(ops->weights_from_f32(probs.data(), 9, nullptr)));
      }
    }
  }
}

TEST(HalfPrecisionConvertsExactly) {
  std::vector<uint16_t> all(1 << 16);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  const int n = static_cast<int>(all.size());
  std::vector<float> a(n), b(n);
  kvctl::ScalarVocabOps().from_f16(all.data(), n, a.data());
  kvctl::CpuVocabOps().from_f16(all.data(), n, b.data());
  EXPECT(SameBits(a, b));
  EXPECT_EQ(a[0x3c00], 1.0f);
  EXPECT_EQ(a[0x0001], 0x1p-24f);
  EXPECT_EQ(a[0xfbff], -65504.0f);
  EXPECT_EQ(a[0x7c00], kInfinity);
  kvctl::ScalarVocabOps().from_bf16(all.data(), n, a.data());
  kvctl::CpuVocabOps().from_bf16(all.data(), n, b.data());
  EXPECT(SameBits(a, b));
  EXPECT_EQ(a[0x3fc0], 1.5f);
}
