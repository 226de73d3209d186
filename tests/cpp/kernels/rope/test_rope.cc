#include <cmath>

#include "check.h"
#include "kernels/convert.h"
#include "kernels/rope.h"

namespace kvctl {
namespace {

RopeParams Params(int32_t rotary_dim) {
  RopeParams params;
  params.rotary_dim = rotary_dim;
  return params;
}

}  // namespace

TEST(RopeRotatesPairsOfHalves) {
  RopeParams params = Params(4);
  params.theta = 100.f;
  params.scale = 0.5f;
  RopeTable table(params);
  const int32_t positions[] = {0, 6};
  table.Fill(positions, 2);
  // Two rows of a fused tensor whose heads of 6 elements start at element 1.
  std::vector<float> in(2 * 20);
  for (size_t i = 0; i < in.size(); ++i) in[i] = float(i);
  std::vector<float> out(2 * 12, -1.f);
  RopeCpu(table, DType::kFloat32, 2, 6, in.data() + 1, 20, out.data(), 12);
  for (int32_t row = 0; row < 2; ++row) {
    for (int32_t head = 0; head < 2; ++head) {
      const float* x = in.data() + 1 + row * 20 + head * 6;
      const float* y = out.data() + row * 12 + head * 6;
      for (int32_t d = 0; d < 2; ++d) {
        const double angle = positions[row] * 0.5 * std::pow(100.0, -2.0 * d / 4);
        EXPECT(std::abs(y[d] - (x[d] * std::cos(angle) - x[d + 2] * std::sin(angle))) < 1e-5);
        EXPECT(std::abs(y[d + 2] - (x[d + 2] * std::cos(angle) + x[d] * std::sin(angle))) < 1e-5);
      }
      EXPECT(y[4] == x[4] && y[5] == x[5]);
    }
  }
}

TEST(RopeWorksInPlaceInHalfPrecision) {
  RopeTable table(Params(2));
  const int32_t position = 3;
  table.Fill(&position, 1);
  BFloat16 x[2];
  FromFloat(1.f, &x[0]);
  FromFloat(2.f, &x[1]);
  RopeCpu(table, DType::kBFloat16, 1, 2, x, 2, x, 2);
  EXPECT(std::abs(ToFloat(x[0]) - (std::cos(3.0) - 2 * std::sin(3.0))) < 0.01);
  EXPECT(std::abs(ToFloat(x[1]) - (2 * std::cos(3.0) + std::sin(3.0))) < 0.01);
}

TEST(RopeStretchesLowFrequenciesOnly) {
  RopeParams params = Params(64);
  params.theta = 500000.f;
  RopeTable plain(params);
  params.llama3 = {8.f, 1.f, 4.f, 8192.f};
  RopeTable stretched(params);
  const int32_t position = 100;
  plain.Fill(&position, 1);
  stretched.Fill(&position, 1);
  EXPECT_EQ(plain.row(0)[0], stretched.row(0)[0]);  // a rotation in 6 positions: unchanged
  // The slowest pair rotates less than once in 8192 positions: an eighth of the angle.
  EXPECT(std::abs(plain.row(0)[63] - 8 * stretched.row(0)[63]) < 1e-5 * plain.row(0)[63] + 1e-6);
}

TEST(RopeRejectsOddDimensions) {
  EXPECT_ERROR(RopeTable(Params(3)), kValue, "rotary_dim must be even and positive, got 3");
  RopeTable table(Params(8));
  float x[4] = {};
  EXPECT_ERROR(RopeCpu(table, DType::kFloat32, 1, 4, x, 4, x, 4), kValue,
               "rotary_dim 8 is larger than head_dim 4");
}

TEST(HalfPrecisionConversionsRoundToNearestEven) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 half{static_cast<uint16_t>(bits)};
    const BFloat16 bfloat{static_cast<uint16_t>(bits)};
    Float16 half_back;
    BFloat16 bfloat_back;
    FromFloat(ToFloat(half), &half_back);
    FromFloat(ToFloat(bfloat), &bfloat_back);
    if (std::isnan(ToFloat(half))) {
      EXPECT(std::isnan(ToFloat(half_back)));
    } else {
      EXPECT_EQ(half_back.bits, half.bits);
    }
    if (std::isnan(ToFloat(bfloat))) {
      EXPECT(std::isnan(ToFloat(bfloat_back)));
    } else {
      EXPECT_EQ(bfloat_back.bits, bfloat.bits);
    }
  }
  const auto half = [](float value) {
    Float16 out;
    FromFloat(value, &out);
    return ToFloat(out);
  };
  EXPECT_EQ(half(1.f + 0x1p-11f), 1.f);                // a tie, to even
  EXPECT_EQ(half(1.f + 3 * 0x1p-11f), 1.f + 0x1p-9f);  // a tie, to even
  EXPECT_EQ(half(65519.f), 65504.f);
  EXPECT_EQ(half(65520.f), INFINITY);
  EXPECT_EQ(half(0x1.8p-24f), 0x1p-23f);  // subnormal tie
  EXPECT_EQ(half(-0x1p-25f), 0.f);
}

TEST(RopeRotatesCachedKeysToOtherPositions) {
  RopeTable table(Params(4));
  const PageShape shape{2, 3, 8, DType::kFloat32};
  const std::vector<int32_t> slots{4, 1, 2}, from{90, 7, 5}, to{11, 7, 100};
  std::vector<float> pages(2 * shape.num_elements()), keys(3 * 2 * 8);
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = std::sin(0.7f * float(i));
  const auto cached = [&](const std::vector<int32_t>& positions) {
    std::vector<float> rotated(keys.size()), filled(pages.size(), 7.f);
    table.Fill(positions.data(), 3);
    RopeCpu(table, DType::kFloat32, 2, 8, keys.data(), 16, rotated.data(), 16);
    WriteSlotsCpu(shape, filled.data(), slots.data(), 3, {rotated.data(), DType::kFloat32, 16},
                  {keys.data(), DType::kFloat32, 16});
    return filled;
  };
  pages = cached(from);
  const std::vector<int32_t> by{11 - 90, 0, 95};
  table.Fill(by.data(), 3);
  RopeSlotsCpu(table, shape, pages.data(), slots.data());
  const std::vector<float> expected = cached(to);
  for (size_t i = 0; i < pages.size(); ++i) EXPECT(std::abs(pages[i] - expected[i]) < 1e-5);
  EXPECT(expected != cached(from));
}

}  // namespace kvctl
