// Vectors and single elements are converted alike, NaN included.
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/convert_row.h"

namespace {

using kvctl::DType;

/*! \brief Converts a row at once, and its elements one by one: whether the bits are the same. */
template <typename From, typename To>
bool SameEitherWay(const std::vector<From>& row, DType from, DType to) {
  const auto count = static_cast<int64_t>(row.size());
  std::vector<To> at_once(row.size()), one_by_one(row.size());
  kvctl::ConvertRow(row.data(), from, at_once.data(), to, count);
  for (int64_t i = 0; i < count; ++i) {
    kvctl::ConvertRow(row.data() + i, from, one_by_one.data() + i, to, 1);
  }
  return std::memcmp(at_once.data(), one_by_one.data(), row.size() * sizeof(To)) == 0;
}

uint16_t HalfOf(float value) {
  uint16_t half;
  kvctl::ConvertRow(&value, DType::kFloat32, &half, DType::kFloat16, 1);
  return half;
}

}  // namespace

TEST(HalvesAreConvertedAlikeInVectorsAndOneByOne) {
  std::vector<uint16_t> halves;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) halves.push_back(static_cast<uint16_t>(bits));
  EXPECT((SameEitherWay<uint16_t, float>(halves, DType::kFloat16, DType::kFloat32)));
  EXPECT((SameEitherWay<uint16_t, float>(halves, DType::kBFloat16, DType::kFloat32)));

  std::mt19937 random(3);
  std::vector<float> floats(1 << 16);
  for (float& value : floats) {
    uint32_t bits = random();
    // Most exponents are those of halves; the others, NaN among them, come too.
    if (random() % 8 != 0) bits = (bits & 0x87ffffffu) + 0x33000000u;
    std::memcpy(&value, &bits, sizeof(value));
  }
  EXPECT((SameEitherWay<float, uint16_t>(floats, DType::kFloat32, DType::kFloat16)));
  EXPECT((SameEitherWay<float, uint16_t>(floats, DType::kFloat32, DType::kBFloat16)));
}

TEST(FloatsRoundToTheNearestHalf) {
  EXPECT_EQ(HalfOf(1.0f), 0x3c00);
  EXPECT_EQ(HalfOf(-2.0f), 0xc000);
  EXPECT_EQ(HalfOf(1.0f + 0x1p-11f), 0x3c00);  // half way: to the even one
  EXPECT_EQ(HalfOf(1.0f + 3 * 0x1p-11f), 0x3c02);
  EXPECT_EQ(HalfOf(0x1p-24f), 1);
  EXPECT_EQ(HalfOf(0x1p-26f), 0);
  EXPECT_EQ(HalfOf(65519.0f), 0x7bff);
  EXPECT_EQ(HalfOf(65520.0f), 0x7c00);
  EXPECT_EQ(HalfOf(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_EQ(HalfOf(std::numeric_limits<float>::quiet_NaN()), 0x7e00);
}
