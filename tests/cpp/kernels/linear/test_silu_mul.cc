#include <cmath>
#include <cstring>

#include "check.h"
#include "kernels/layers/activation.h"

namespace {

float SiluMulOf(float gate, float up) {
  const float pair[2] = {gate, up};
  float out;
  kvctl::SiluMul(pair, 1, 1, &out);
  return out;
}

}  // namespace

TEST(SiluMulAgreesWithDoubles) {
  constexpr int64_t kCols = 4001;  // not a multiple of a vector: covers the tail
  std::vector<float> gate_up(2 * kCols);
  for (int64_t i = 0; i < kCols; ++i) {
    gate_up[i] = static_cast<float>(i - 2000) * 0.04f;  // -80 .. 80
    gate_up[kCols + i] = 1.0f + static_cast<float>(i % 7);
  }
  std::vector<float> out(kCols);
  kvctl::SiluMul(gate_up.data(), 1, kCols, out.data());
  for (int64_t i = 0; i < kCols; ++i) {
    const double gate = gate_up[i];
    const double wanted = gate / (1 + std::exp(-gate)) * gate_up[kCols + i];
    EXPECT(std::abs(out[i] - wanted) <= 5e-7 * std::abs(wanted));
  }
}

TEST(SiluMulHandlesExtremeValues) {
  EXPECT_EQ(SiluMulOf(0.0f, 5.0f), 0.0f);
  EXPECT_EQ(SiluMulOf(1e30f, 2.0f), 2e30f);
  EXPECT(std::abs(SiluMulOf(-1e3f, 2.0f)) < 1e-30f);
  EXPECT(std::isnan(SiluMulOf(NAN, 1.0f)));
  EXPECT(std::isnan(SiluMulOf(1.0f, NAN)));
}

TEST(SiluMulOfARowIsTheSameAmongOthers) {
  constexpr int64_t kRows = 9, kCols = 1537;  // large enough to be threaded
  std::vector<float> gate_up(kRows * 2 * kCols);
  for (size_t i = 0; i < gate_up.size(); ++i) gate_up[i] = std::sin(static_cast<float>(i)) * 9;
  std::vector<float> all(kRows * kCols), alone(kCols);
  kvctl::SiluMul(gate_up.data(), kRows, kCols, all.data());
  for (int64_t r = 0; r < kRows; ++r) {
    kvctl::SiluMul(gate_up.data() + r * 2 * kCols, 1, kCols, alone.data());
    EXPECT(std::memcmp(alone.data(), all.data() + r * kCols, sizeof(float) * kCols) == 0);
  }
}
