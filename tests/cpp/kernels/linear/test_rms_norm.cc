#include <cmath>
#include <cstring>
#include <random>

#include "check.h"
#include "kernels/layers/rms_norm.h"

namespace {

std::vector<float> Random(int64_t count) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

}  // namespace

TEST(RmsNormAgreesWithDoubles) {
  for (int64_t cols : {1, 7, 16, 33, 576}) {
    const std::vector<float> x = Random(3 * cols), weight = Random(cols);
    std::vector<float> out(3 * cols);
    kvctl::RmsNorm(x.data(), weight.data(), 3, cols, 1e-5f, out.data());
    for (int64_t r = 0; r < 3; ++r) {
      double squares = 0;
      for (int64_t i = 0; i < cols; ++i) squares += double{x[r * cols + i]} * x[r * cols + i];
      const double scale = 1 / std::sqrt(squares / cols + 1e-5);
      for (int64_t i = 0; i < cols; ++i) {
        const double wanted = x[r * cols + i] * scale * weight[i];
        EXPECT(std::abs(out[r * cols + i] - wanted) <= 2e-6 * std::abs(wanted));
      }
    }
  }
}

TEST(RmsNormOfARowIsTheSameAmongOthersAndInPlace) {
  constexpr int64_t kRows = 40, kCols = 576;  // large enough to be threaded
  const std::vector<float> x = Random(kRows * kCols), weight = Random(kCols);
  std::vector<float> all = x, alone(kCols);
  kvctl::RmsNorm(all.data(), weight.data(), kRows, kCols, 1e-5f, all.data());
  for (int64_t r = 0; r < kRows; ++r) {
    kvctl::RmsNorm(x.data() + r * kCols, weight.data(), 1, kCols, 1e-5f, alone.data());
    EXPECT(std::memcmp(alone.data(), all.data() + r * kCols, sizeof(float) * kCols) == 0);
  }
}

TEST(RmsNormOfZerosIsZero) {
  const std::vector<float> x(20, 0.0f), weight(20, 3.0f);
  std::vector<float> out(20, NAN);
  kvctl::RmsNorm(x.data(), weight.data(), 1, 20, 1e-5f, out.data());
  for (float value : out) EXPECT_EQ(value, 0.0f);
}
