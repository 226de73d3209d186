#include <omp.h>

#include <cmath>

#include "check.h"
#include "kernels/convert.h"
#include "kernels/isa.h"
#include "packed_weight.h"

using namespace kvctl;

namespace {

constexpr WeightType kBFloat16 = WeightType::kBFloat16;
constexpr LinearBackend kAmx = LinearBackend::kAmx;

float Rounded(float value) {
  BFloat16 narrow;
  FromFloat(value, &narrow);
  return ToFloat(narrow);
}

}  // namespace

TEST(TilesAreChosenForBFloat16WhereTheyMayBeUsed) {
  EXPECT(ChooseLinearBackend(kBFloat16) == (CpuHasTiles() ? kAmx : LinearBackend::kOwn));
  EXPECT(ChooseLinearBackend(WeightType::kFloat32) != kAmx);
  EXPECT(!CpuHasTiles() || CpuIsa() == Isa::kAvx512);
}

TEST(TilesRoundWeightsToNearestAndKeepInputs) {
  if (!CpuHasTiles()) return;
  for (auto [n, k] : kShapes) {
    Weight weight(n, k, kBFloat16, kAmx);
    const std::vector<float> x = Input(19, k);
    const std::vector<float> out = Run(weight, x, 19);
    for (float& value : weight.plain) value = Rounded(value);
    const double bound = std::ldexp(1.0, -17) + 2 * (k + 1) * std::ldexp(1.0, -24);
    EXPECT(WorstError(weight, x, 19, out, bound) <= 1.0);
  }
}

TEST(AnInfiniteInputStaysInfiniteOnTiles) {
  if (!CpuHasTiles()) return;
  const std::vector<float> weights = {1.0f, -2.0f};
  alignas(64) unsigned char packed[4096];
  EXPECT(PackedLinearBytes(2, 1, kBFloat16, kAmx) <= sizeof(packed));
  PackLinear(weights.data(), 2, 1, kBFloat16, kAmx, packed);
  const float x[2] = {INFINITY, 3.0f};
  float out[4];
  Linear(x, 2, packed, nullptr, out);
  EXPECT(out[0] == INFINITY && out[1] == -INFINITY);
  EXPECT(out[2] == 3.0f && out[3] == -6.0f);
}

TEST(ARowOnTilesIsTheSameAmongAnyNumberOfRows) {
  if (!CpuHasTiles()) return;
  for (auto [n, k] : kShapes) {
    Weight weight(n, k, kBFloat16, kAmx);
    const std::vector<float> x = Input(200, k);
    const std::vector<float> all = Run(weight, x, 200);
    for (int64_t m = 1; m <= 64; ++m) {
      EXPECT(SameBits(Run(weight, x, m).data(), all.data(), m * n));
      const std::vector<float> tail(x.end() - m * k, x.end());
      EXPECT(SameBits(Run(weight, tail, m).data(), all.data() + (200 - m) * n, m * n));
    }
  }
}

// More inputs than the second-level cache holds of so many rows: they are multiplied in parts.
TEST(ALongRowOnTilesIsTheSameAmongAnyNumberOfRows) {
  if (!CpuHasTiles()) return;
  constexpr int64_t kN = 650, kK = 10000;
  Weight weight(kN, kK, kBFloat16, kAmx);
  const std::vector<float> x = Input(150, kK);
  const std::vector<float> all = Run(weight, x, 150);
  for (int64_t m : {1, 16, 17, 32, 33, 64, 70, 129}) {
    EXPECT(SameBits(Run(weight, x, m).data(), all.data(), m * kN));
  }
  for (float& value : weight.plain) value = Rounded(value);
  const double bound = std::ldexp(1.0, -17) + 2 * (kK + 1) * std::ldexp(1.0, -24);
  EXPECT(WorstError(weight, x, 2, all, bound) <= 1.0);
}

TEST(ARowOnTilesIsTheSameWithAnyNumberOfThreads) {
  if (!CpuHasTiles()) return;
  Weight weight(200, 700, kBFloat16, kAmx);
  const std::vector<float> x = Input(37, 700);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::vector<float> alone = Run(weight, x, 37);
  for (int count : {2, 3, 9}) {
    omp_set_num_threads(count);
    EXPECT(SameBits(Run(weight, x, 37).data(), alone.data(), 37 * 200));
  }
  omp_set_num_threads(threads);
}

TEST(TilesAddTheAddendOnce) {
  if (!CpuHasTiles()) return;
  Weight weight(45, 200, kBFloat16, kAmx);
  const std::vector<float> x = Input(9, 200);
  const std::vector<float> plain = Run(weight, x, 9);
  const std::vector<float> addend = Input(9, 45);
  std::vector<float> sum = Run(weight, x, 9, addend.data());
  for (size_t i = 0; i < sum.size(); ++i) EXPECT_EQ(sum[i], plain[i] + addend[i]);
  std::vector<float> in_place = addend;
  Linear(x.data(), 9, weight.packed, in_place.data(), in_place.data());
  EXPECT(SameBits(in_place.data(), sum.data(), 9 * 45));
}

// Sums without an addend are stored where they belong where whole tiles fit, others row by row.
TEST(SumsOnTilesAreTheSameWithAnAddend) {
  if (!CpuHasTiles()) return;
  for (int64_t n : {32, 64, 70}) {
    Weight weight(n, 200, kBFloat16, kAmx);
    for (int64_t m : {15, 16, 31, 32, 48, 50, 64, 130}) {
      const std::vector<float> x = Input(m, 200);
      const std::vector<float> zeros(m * n, 0.0f);
      const std::vector<float> plain = Run(weight, x, m);
      EXPECT(SameBits(Run(weight, x, m, zeros.data()).data(), plain.data(), m * n));
      std::vector<float> out(m * n + 1, 7.0f);
      Linear(x.data(), m, weight.packed, nullptr, out.data());
      EXPECT(SameBits(out.data(), plain.data(), m * n));
      EXPECT_EQ(out[m * n], 7.0f);
    }
  }
}

TEST(NaNOnTilesStaysInItsRow) {
  if (!CpuHasTiles()) return;
  Weight weight(40, 30, kBFloat16, kAmx);
  std::vector<float> x = Input(24, 30);
  const std::vector<float> clean = Run(weight, x, 24);
  x[19 * 30 + 7] = NAN;
  const std::vector<float> out = Run(weight, x, 24);
  for (int64_t i = 0; i < 24 * 40; ++i) {
    EXPECT(i / 40 == 19 ? std::isnan(out[i]) : out[i] == clean[i]);
  }
}
