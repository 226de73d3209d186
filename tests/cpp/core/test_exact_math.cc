#include <cmath>
#include <random>

#include "check.h"
#include "core/exact_math.h"

TEST(ExpIsAccurateAndScaled) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> exponent(-60, 0);
  for (int i = 0; i < 200000; ++i) {
    const float y = exponent(random);
    const double expected = std::ldexp(std::exp2(static_cast<double>(y)), kvctl::kExpBits);
    const double got = kvctl::Exp2Scaled(y, 1.0f, 0.0f);
    if (std::fabs(got - expected) > 1.2e-7 * expected) {
      EXPECT_EQ(got, expected);
      return;
    }
  }
  EXPECT_EQ(kvctl::ToFixed(kvctl::Exp2Scaled(0, 1, 0)), uint64_t{1} << kvctl::kExpBits);
  EXPECT_EQ(kvctl::ToFixed(kvctl::Exp2Scaled(-INFINITY, 1, 3)), uint64_t{0});
  EXPECT_EQ(kvctl::ToFixed(kvctl::Exp2Scaled(NAN, 1, 0)), uint64_t{0});
  EXPECT_EQ(kvctl::ToFixed(kvctl::Exp2Scaled(-46.5f, 1, 0)), uint64_t{0});
  EXPECT_EQ(kvctl::ToFixed(kvctl::Exp2Scaled(-45.0f, 1, 0)), uint64_t{1});
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
