#include <omp.h>

#include <cmath>

#include "check.h"
#include "kernels/linear.h"
#include "packed_weight.h"

using namespace kvctl;

TEST(LinearAgreesWithDoubles) {
  for (auto [n, k] : kShapes) {
    Weight weight(n, k, WeightType::kFloat32);
    const std::vector<float> x = Input(9, k);
    EXPECT(WorstError(weight, x, 9, Run(weight, x, 9), k * std::ldexp(1.0, -24)) <= 1.0);
  }
}

TEST(BFloat16WeightsAreRoundedToNearest) {
  for (auto [n, k] : kShapes) {
    Weight weight(n, k, WeightType::kBFloat16);
    const std::vector<float> x = Input(9, k);
    const double bound = std::ldexp(1.0, -8) + k * std::ldexp(1.0, -24);
    EXPECT(WorstError(weight, x, 9, Run(weight, x, 9), bound) <= 1.0);
  }
}

TEST(BFloat16KeepsRepresentableValues) {
  // Values of eight significant bits survive; 1 + 2^-8 lies half-way and goes to the even
  // neighbour.
  const float plain[] = {1.0f, -2.5f, 0.0f, 1.0f + 0.00390625f, 1.0f + 3 * 0.00390625f, 1e30f};
  alignas(64) unsigned char packed[1024];
  EXPECT(PackedLinearBytes(6, 1, WeightType::kBFloat16, LinearBackend::kOwn) <= sizeof(packed));
  PackLinear(plain, 6, 1, WeightType::kBFloat16, LinearBackend::kOwn, packed);
  const float one = 1.0f;
  float out[6];
  Linear(&one, 1, packed, nullptr, out);
  EXPECT_EQ(out[0], 1.0f);
  EXPECT_EQ(out[1], -2.5f);
  EXPECT_EQ(out[2], 0.0f);
  EXPECT_EQ(out[3], 1.0f);
  EXPECT_EQ(out[4], 1.0f + 4 * 0.00390625f);
  EXPECT(std::abs(out[5] - 1e30f) < 4e27f);
}

TEST(ARowIsTheSameAmongAnyNumberOfRows) {
  for (WeightType type : {WeightType::kFloat32, WeightType::kBFloat16}) {
    for (auto [n, k] : kShapes) {
      Weight weight(n, k, type);
      const std::vector<float> x = Input(100, k);
      const std::vector<float> all = Run(weight, x, 100);
      for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 31, 48, 49, 64}) {
        EXPECT(SameBits(Run(weight, x, m).data(), all.data(), m * n));
        // ... and at any position among them.
        const std::vector<float> tail(x.end() - m * k, x.end());
        EXPECT(SameBits(Run(weight, tail, m).data(), all.data() + (100 - m) * n, m * n));
      }
    }
  }
}

TEST(ARowIsTheSameWithAnyNumberOfThreads) {
  Weight weight(200, 300, WeightType::kFloat32);
  const std::vector<float> x = Input(7, 300);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::vector<float> alone = Run(weight, x, 7);
  for (int count : {2, 3, 9}) {
    omp_set_num_threads(count);
    EXPECT(SameBits(Run(weight, x, 7).data(), alone.data(), 7 * 200));
  }
  omp_set_num_threads(threads);
}

TEST(AddendIsAddedOnce) {
  Weight weight(33, 200, WeightType::kFloat32);
  const std::vector<float> x = Input(9, 200);
  const std::vector<float> plain = Run(weight, x, 9);
  const std::vector<float> addend = Input(9, 33);
  std::vector<float> sum = Run(weight, x, 9, addend.data());
  for (size_t i = 0; i < sum.size(); ++i) EXPECT_EQ(sum[i], plain[i] + addend[i]);
  std::vector<float> in_place = addend;
  Linear(x.data(), 9, weight.packed, in_place.data(), in_place.data());
  EXPECT(SameBits(in_place.data(), sum.data(), 9 * 33));
}

TEST(NaNStaysInItsRowAndColumn) {
  Weight weight(20, 30, WeightType::kFloat32);
  std::vector<float> x = Input(8, 30);
  const std::vector<float> clean = Run(weight, x, 8);
  x[3 * 30 + 7] = NAN;
  const std::vector<float> out = Run(weight, x, 8);
  for (int64_t i = 0; i < 8 * 20; ++i) {
    EXPECT(i / 20 == 3 ? std::isnan(out[i]) : out[i] == clean[i]);
  }
}

TEST(NoRowsWriteNothing) {
  Weight weight(4, 4, WeightType::kFloat32);
  Linear(nullptr, 0, weight.packed, nullptr, nullptr);
}

TEST(InspectTellsPackedWeightsFromOtherBytes) {
  Weight weight(5, 6, WeightType::kBFloat16);
  const PackedLinearInfo info = InspectPackedLinear(weight.packed, weight.bytes);
  EXPECT_EQ(info.n, 5);
  EXPECT_EQ(info.k, 6);
  EXPECT(info.type == WeightType::kBFloat16);
  EXPECT_ERROR(InspectPackedLinear(weight.packed, weight.bytes - 1), kValue, "not a weight packed");
  EXPECT_ERROR(InspectPackedLinear(weight.packed, 3), kValue, "these 3 bytes");
  const std::vector<float> other(64, 1.0f);
  EXPECT_ERROR(InspectPackedLinear(other.data(), 256), kValue, "not a weight packed");
}

TEST(SizesAreCheckedBeforeAnythingIsAllocated) {
  const auto bytes = [](int64_t n, int64_t k) {
    return PackedLinearBytes(n, k, WeightType::kFloat32, LinearBackend::kOwn);
  };
  EXPECT_ERROR(bytes(0, 4), kValue, "not (0, 4)");
  EXPECT_ERROR(bytes(4, -1), kValue, "not (4, -1)");
  EXPECT_ERROR(bytes(int64_t{1} << 40, 4), kValue, "rows and columns");
}

// OpenMP may start fewer threads than omp_get_max_threads promises: each row must be computed
// still.
TEST(LinearIsWholeWithFewerThreadsThanPromised) {
  std::vector<LinearBackend> backends = {LinearBackend::kOwn};
  const LinearBackend chosen = ChooseLinearBackend(WeightType::kFloat32);
  if (chosen != LinearBackend::kOwn) backends.push_back(chosen);
  const int threads = omp_get_max_threads();
  for (LinearBackend backend : backends) {
    omp_set_num_threads(4);
    Weight weight(512, 256, WeightType::kFloat32, backend);
    for (int64_t m : {1, 4, 70}) {
      const std::vector<float> x = Input(m, weight.k);
      const double unit = weight.k * std::ldexp(1.0, -24);
      EXPECT(WorstError(weight, x, m, Run(weight, x, m), unit) <= 1.0);
      omp_set_dynamic(1);
      EXPECT(WorstError(weight, x, m, Run(weight, x, m), unit) <= 1.0);
      EXPECT(omp_get_dynamic() != 0);
      EXPECT_EQ(omp_get_max_threads(), 4);
      omp_set_dynamic(0);
      double worst[2] = {9, 9};
#pragma omp parallel num_threads(2)
      worst[omp_get_thread_num()] = WorstError(weight, x, m, Run(weight, x, m), unit);
      EXPECT(worst[0] <= 1.0);
      EXPECT(omp_get_max_threads() == 4 && (worst[1] <= 1.0 || worst[1] == 9));
      const int levels = omp_get_max_active_levels();
      omp_set_max_active_levels(0);
      EXPECT(WorstError(weight, x, m, Run(weight, x, m), unit) <= 1.0);
      omp_set_max_active_levels(levels);
    }
  }
  omp_set_num_threads(threads);
}
