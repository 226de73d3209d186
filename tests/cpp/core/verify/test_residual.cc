// A residual kept as a recipe is, token by token, the distribution that plain subtraction leaves.
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "core/support/exact_math.h"
#include "core/verify/residual.h"

namespace {

using kvctl::Distribution;
using kvctl::DraftDistribution;
using kvctl::DraftInput;
using kvctl::DraftRow;
using kvctl::DType;
using kvctl::Residual;

constexpr int kSize = 9001;  // several blocks, and pieces that do not fill up

std::vector<float> Logits(std::mt19937& random) {
  std::vector<float> logits(kSize);
  for (float& l : logits) l = std::normal_distribution<float>(0, 3)(random);
  return logits;
}

template <typename T>
std::vector<T> Probs(std::mt19937& random) {
  std::vector<double> p(kSize);
  double sum = 0;
  for (double& v : p) sum += v = random() % 4 == 0 ? 0 : std::exponential_distribution<>(1)(random);
  std::vector<T> out(kSize);
  for (int i = 0; i < kSize; ++i) out[i] = static_cast<T>(p[i] / sum);
  return out;
}

DraftDistribution Draft(const DraftRow& row, int32_t token, std::vector<int32_t> excluded) {
  DraftDistribution d{false, token, row.weight(token), row.total(), std::move(excluded), row};
  for (int32_t x : d.excluded) d.total -= row.weight(x);
  return d;
}

// What the header promises, written over whole rows. The total is 1 on the grid to begin with.
double PlainSubtract(const kvctl::VocabOps& ops, double a, const DraftDistribution& d,
                     std::vector<double>* r, double* total) {
  const double r_total = *total;
  double left = 0;
  std::vector<double> out = *r;
  if (d.one_hot) {
    *total -= out[d.token];
    out[d.token] = 0;
    *r = out;
    return a * (*total / r_total);
  }
  std::vector<double> q(kSize);
  d.row.Weights(ops, 0, kSize, q.data());
  const double r_factor = a * kvctl::kProbScale / r_total, d_factor = kvctl::kProbScale / d.total;
  for (int i = 0; i < kSize; ++i) {
    out[i] = std::nearbyint(std::max(0.0, std::fma(r_factor, (*r)[i], -(d_factor * q[i]))));
  }
  for (int32_t x : d.excluded) out[x] = kvctl::ToGrid(a * ((*r)[x] / r_total));
  for (double w : out) left += w;
  *r = out;
  *total = left;
  return left / kvctl::kProbScale;
}

void ExpectSameDistribution(Residual& residual, const std::vector<double>& expected,
                            double nominal) {
  Distribution distribution;
  residual.FillDistribution(&distribution);
  EXPECT(distribution.weights == expected);
  double total = 0;
  for (double w : expected) total += w;
  EXPECT_EQ(distribution.total, total);
  EXPECT(std::fabs(total - nominal) < kSize / 2.0);
  for (int32_t token : {0, 17, 511, 512, 4095, 4096, kSize - 1}) {
    EXPECT_EQ(residual.prob(token), expected[token] / nominal);
  }
  const kvctl::VocabContext vocab(kSize);
  std::mt19937_64 random(3);
  for (int i = 0; i < 200; ++i) {
    const uint64_t bits = random();
    EXPECT_EQ(residual.SampleToken(bits), vocab.SampleToken(distribution, bits));
  }
}

}  // namespace

TEST(RecipesLeaveWhatPlainSubtractionLeaves) {
  std::mt19937 random(11);
  const kvctl::VocabContext vocab(kSize);
  for (int trial = 0; trial < 6; ++trial) {
    const std::vector<float> logits = Logits(random), q32 = Probs<float>(random);
    const std::vector<double> q64 = Probs<double>(random);
    kvctl::Sampling sampling;
    sampling.temperature = trial % 3 == 2 ? 0.7 : 1.0;
    if (trial % 2 == 1) sampling.top_p = 0.9;
    kvctl::RowInput row;
    row.values = logits.data();
    kvctl::RowSampler target(vocab);
    target.Load(row, sampling);
    Distribution start;
    target.FillDistribution(&start);
    std::vector<double> plain = start.weights;

    DraftInput input;
    input.probs = q32.data();
    input.width = kSize;
    const DraftRow row32(vocab, input, 0);
    input.probs = q64.data();
    input.type = DType::kFloat64;
    const DraftRow row64(vocab, input, 0);
    Residual residual(vocab);
    residual.Start(&target);
    double total = kvctl::kProbScale;
    if (trial < 3)
      ExpectSameDistribution(residual, plain, total);  // what was asked before changes nothing
    // More dense steps than a recipe holds, with steps of every other kind between them.
    std::vector<DraftDistribution> steps;
    for (int i = 0; i < 7; ++i) {
      const int32_t token = static_cast<int32_t>(random() % kSize);
      const bool excludes = trial % 2 == 0 ? i == 0 : i == 2;
      steps.push_back(Draft(i % 2 == 0 ? row32 : row64, token,
                            excludes ? std::vector<int32_t>{5, 4097} : std::vector<int32_t>{}));
      if (i % 3 == 1) steps.push_back({true, token, 1, 1, {}, {}});
    }
    double a = 1;
    for (const DraftDistribution& d : steps) {
      EXPECT_EQ(residual.Subtract(a, d), PlainSubtract(vocab.ops(), a, d, &plain, &total));
      if (trial < 3) ExpectSameDistribution(residual, plain, total);
      a = 0.8;
    }
    ExpectSameDistribution(residual, plain, total);
  }
}

// The first distribution in floats is subtracted from logits in floats: beside doubles, total
// variation and mass are off by no more than these mean.
TEST(FloatsLeaveWhatDoublesLeave) {
  std::mt19937 random(12);
  const kvctl::VocabContext vocab(kSize);
  for (int trial = 0; trial < 40; ++trial) {
    const std::vector<float> logits = Logits(random);
    std::vector<double> p(kSize);
    double sum = 0;
    for (int i = 0; i < kSize; ++i) sum += p[i] = std::exp(static_cast<double>(logits[i]));
    for (double& v : p) v /= sum;
    std::vector<float> q = Probs<float>(random);
    if (trial % 4 == 3)
      q.assign(p.begin(), p.end());  // what is left of a distribution less itself is noise
    double q_sum = 0;
    for (float v : q) q_sum += v;

    kvctl::RowInput row;
    row.values = logits.data();
    const kvctl::Sampling sampling;
    kvctl::RowSampler target(vocab);
    target.Load(row, sampling);
    DraftInput input;
    input.probs = q.data();
    input.width = kSize;
    Residual residual(vocab);
    residual.Start(&target);
    const bool whole = trial % 2 == 0 || trial % 8 == 7;
    const double a = whole ? 1 : std::uniform_real_distribution<double>(0.01, 1)(random);
    const double mass = residual.Subtract(a, Draft(DraftRow(vocab, input, 0), 0, {}));
    Distribution distribution;
    residual.FillDistribution(&distribution);
    double expected_mass = 0, off = 0;
    for (int i = 0; i < kSize; ++i) {
      const double expected = std::max(0.0, a * p[i] - q[i] / q_sum);
      expected_mass += expected;
      off += std::fabs(distribution.weights[i] / kvctl::kProbScale - expected);
    }
    EXPECT(std::fabs(mass - expected_mass) < 2e-7);
    if (mass == 0) continue;  // nothing is left, so nothing was taken
    EXPECT(off / 2 < 2e-7);
    EXPECT_EQ(mass, distribution.total / kvctl::kProbScale);
    if (trial % 4 == 3) EXPECT(mass < 2e-7);
  }
}

// One token holds all but what the rounding of weights may add up to.
TEST(WhatRoundingMayHaveMadeIsCounted) {
  const kvctl::VocabContext vocab(kSize);
  for (const float low : {-33.5f, -34.0f, -35.0f}) {
    std::vector<float> logits(kSize, low);
    logits[700] = 0;
    kvctl::RowInput row;
    row.values = logits.data();
    const kvctl::Sampling sampling;
    kvctl::RowSampler target(vocab);
    target.Load(row, sampling);
    Residual residual(vocab);
    residual.Start(&target);
    double rest = 0, weight;
    for (int32_t i = 0; i < kSize; ++i) {
      target.Weights(i, 1, &weight);
      if (i != 700) rest += weight;
    }
    const double mass = residual.Subtract(1.0, {true, 700, 1, 1, {}, {}});
    EXPECT_EQ(mass, rest / kvctl::kProbScale);
    EXPECT_EQ(residual.SampleToken(0) != 700, rest > 0);
  }
}

TEST(WhatLeavesNothingChangesNothing) {
  const kvctl::VocabContext vocab(4);
  const std::vector<float> distribution = {0.5f, 0.25f, 0.25f, 0}, certain = {0, 1, 0, 0};
  kvctl::RowInput row;
  row.values = distribution.data();
  row.probabilities = true;
  const kvctl::Sampling sampling;
  kvctl::RowSampler target(vocab);
  target.Load(row, sampling);
  DraftInput input;
  input.probs = distribution.data();
  input.width = 4;
  const DraftRow same(vocab, input, 0);
  Residual residual(vocab);
  residual.Start(&target);
  EXPECT_EQ(residual.Subtract(1.0, Draft(same, 0, {})), 0.0);
  EXPECT_EQ(residual.prob(0), 0.5);

  row.values = certain.data();
  target.Load(row, sampling);
  residual.Start(&target);
  EXPECT_EQ(residual.Subtract(1.0, {true, 1, 1, 1, {}, {}}), 0.0);
  EXPECT_EQ(residual.prob(1), 1.0);
  EXPECT_EQ(residual.SampleToken(~uint64_t{0}), 1);
}
