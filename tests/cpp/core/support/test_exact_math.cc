#include <cmath>
#include <random>

#include "check.h"
#include "core/support/exact_math.h"

TEST(ExpIsAccurateAndScaled) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> exponent(-60, 0);
  for (int i = 0; i < 200000; ++i) {
    const float y = exponent(random);
    const double expected = std::ldexp(std::exp2(static_cast<double>(y)), kvctl::kExpBits);
    const double got = kvctl::Exp2Scaled(y, kvctl::MakeExpGrid(1, 0));
    if (std::fabs(got - expected) > 1.2e-7 * expected) {
      EXPECT_EQ(got, expected);
      return;
    }
  }
  const auto fixed = [](float logit, float exponent) {
    return kvctl::ToFixed(kvctl::Exp2Scaled(logit, kvctl::MakeExpGrid(1, exponent)));
  };
  EXPECT_EQ(fixed(0, 0), uint64_t{1} << kvctl::kExpBits);
  EXPECT_EQ(fixed(-INFINITY, 3), uint64_t{0});
  EXPECT_EQ(fixed(NAN, 0), uint64_t{0});
  EXPECT_EQ(fixed(-45.5f, 0), uint64_t{0});
  EXPECT_EQ(fixed(-44.0f, 0), uint64_t{1});
  EXPECT_EQ(fixed(-1e30f, -kvctl::kMaxExponent), uint64_t{0});
  EXPECT_EQ(fixed(kvctl::kMaxExponent, kvctl::kMaxExponent), uint64_t{1} << kvctl::kExpBits);
}

// A float that holds the full exponent, logit * scale - exponent, would be off by 1.3e-6 here.
TEST(ExpOfLargeLogitsIsAsAccurate) {
  std::mt19937 random(5);
  for (int i = 0; i < 200000; ++i) {
    const float scale = std::uniform_real_distribution<float>(0.3f, 3.0f)(random);
    const float max = std::uniform_real_distribution<float>(-300, 300)(random);
    const float logit = max - std::uniform_real_distribution<float>(0, 40)(random) / scale;
    const float exponent = std::ceil(max * scale);
    const double exact = static_cast<double>(logit) * static_cast<double>(scale) - exponent;
    const double expected = std::ldexp(std::exp2(exact), kvctl::kExpBits);
    const double got = kvctl::Exp2Scaled(logit, kvctl::MakeExpGrid(scale, exponent));
    if (std::fabs(got - expected) > 1.6e-7 * expected) {
      EXPECT_EQ(got, expected);
      return;
    }
  }
}

TEST(RestsAreAsAccurateAsTheFloatsTheyComeFrom) {
  std::mt19937 random(6);
  const auto uniform = [&](double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
  };
  const double one = std::ldexp(1.0, kvctl::kExpBits);
  for (int i = 0; i < 200000; ++i) {
    const double p = std::exp2(uniform(-40, 0)), total = uniform(1, 3), a = uniform(0.1, 1);
    const auto exp = static_cast<float>(p * one);
    const auto q = static_cast<float>(i % 2 == 0 ? p * uniform(0, 2) : std::exp2(uniform(-60, 0)));
    const double b = uniform(0.999, 1.001);
    const double minuend = a * (exp / total), subtrahend = b * q * one;
    const kvctl::RestFactors factors = kvctl::MakeRestFactors(a * kvctl::kGridOfFixed / total, b);
    const auto got = static_cast<double>(kvctl::FixedRest(exp, q, factors));
    const double expected = std::fmax(minuend - subtrahend, 0);
    if (std::fabs(got - expected) > 0x1p-22 * std::fmax(minuend, subtrahend) + 1) {
      EXPECT_EQ(got, expected);
      return;
    }
  }
  const kvctl::RestFactors plain = kvctl::MakeRestFactors(kvctl::kGridOfFixed, 1);
  EXPECT_EQ(kvctl::FixedRest(static_cast<float>(one / 2), 0.25f, plain),
            static_cast<uint64_t>(one / 4));
  EXPECT_EQ(kvctl::FixedRest(static_cast<float>(one / 2), 0.5f, plain), uint64_t{0});
  EXPECT_EQ(kvctl::FixedRest(static_cast<float>(one / 2), 0.75f, plain), uint64_t{0});
  EXPECT_EQ(kvctl::FixedRest(0.0f, NAN, plain), uint64_t{0});
}

TEST(LogIsAccurateAlsoNearOne) {
  std::mt19937_64 random(4);
  for (int i = 0; i < 200000; ++i) {
    double x = kvctl::OpenUniform(random());
    if (i % 3 == 0) x = 1 - x * 1e-9;
    if (i % 7 == 0) x = std::ldexp(x, -static_cast<int>(random() % 900));
    const double expected = std::log(x);
    if (std::fabs(kvctl::ExactLog(x) - expected) > 1e-15 * std::fabs(expected)) {
      EXPECT_EQ(kvctl::ExactLog(x), expected);
      return;
    }
  }
  EXPECT_EQ(kvctl::ExactLog(1.0), 0.0);
}

TEST(UniformsStayInsideTheirInterval) {
  EXPECT_EQ(kvctl::OpenUniform(0), 0x1p-53);
  EXPECT(kvctl::OpenUniform(~uint64_t{0}) < 1.0);
  EXPECT_EQ(kvctl::Uniform(0), 0.0);
  EXPECT(kvctl::Uniform(~uint64_t{0}) < 1.0);
}
