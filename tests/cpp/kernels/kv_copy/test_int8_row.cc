// Rows of 8-bit integers: what each element becomes, and the rows that have no scale.
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/int8_row.h"
#include "kernels/kv_copy.h"

namespace kvctl {
namespace {

struct Row {
  std::vector<int8_t> bytes;
  float scale = 0;
  std::vector<float> values;

  explicit Row(const std::vector<float>& row) : bytes(row.size() + kScaleBytes, 77) {
    const auto size = static_cast<int32_t>(row.size());
    QuantizeRow(row.data(), size, bytes.data());
    std::memcpy(&scale, bytes.data() + size, sizeof(scale));
    values.resize(row.size());
    DequantizeRow(bytes.data(), size, values.data());
  }
};

std::vector<float> RandomRow(std::mt19937* rng, int32_t size, float magnitude) {
  std::normal_distribution<float> normal(0.f, magnitude);
  std::vector<float> row(size);
  for (float& value : row) value = normal(*rng);
  return row;
}

}  // namespace

TEST(EachElementIsTheNearestMultipleOfTheScale) {
  std::mt19937 rng(1);
  for (const int32_t size : {8, 64, 72, 128, 256}) {
    for (const float magnitude : {1e-30f, 1e-3f, 1.f, 700.f, 1e30f}) {
      const std::vector<float> row = RandomRow(&rng, size, magnitude);
      float largest = 0;
      for (const float value : row) largest = std::max(largest, std::abs(value));
      const Row found(row);
      EXPECT(found.scale == largest / 127);
      int32_t most = 0;
      for (int32_t d = 0; d < size; ++d) {
        most = std::max<int32_t>(most, std::abs(found.bytes[d]));
        // The oracle: the division in float32, rounded by the C library (ties to even).
        EXPECT(found.bytes[d] == std::nearbyint(row[d] / found.scale));
        EXPECT(found.values[d] == static_cast<float>(found.bytes[d]) * found.scale);
        EXPECT(std::abs(found.values[d] - row[d]) <= 0.5001f * found.scale);
      }
      EXPECT(most == 127);
    }
  }
}

TEST(TiesGoToTheEvenInteger) {
  const Row row({127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f});
  EXPECT(row.scale == 1);
  EXPECT((std::vector<float>{127, 0, 2, 2, -0.f, -2, -2, 126} == row.values));
}

TEST(ZerosStayZeros) {
  const Row row(std::vector<float>(64, 0.f));
  EXPECT(row.scale == 0);
  EXPECT(row.values == std::vector<float>(64, 0.f));
}

TEST(MagnitudesAtTheEndsOfTheRangeAreDefined) {
  std::vector<float> row(16, 0.f);
  row[3] = -FLT_MAX;
  const Row large(row);
  EXPECT(large.bytes[3] == -127 && std::isfinite(large.values[3]));
  EXPECT(std::abs(large.values[3] / FLT_MAX + 1) < 1e-6);
  row[3] = 127 * FLT_MIN;
  const Row small(row);
  EXPECT(small.scale == FLT_MIN && small.values[3] == row[3]);
  row[3] = std::nextafter(row[3], 0.f);
  const Row smaller(row);
  EXPECT(smaller.scale == 0 && smaller.values[3] == 0);
}

TEST(ARowThatIsNotFiniteIsNaNAsAWhole) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {infinity, -infinity, std::nanf(""), -std::nanf("")}) {
    for (const int32_t place : {0, 5, 63}) {
      std::vector<float> row(64, 1.f);
      row[place] = bad;
      for (const float value : Row(row).values) EXPECT(std::isnan(value));
    }
  }
}

TEST(SlotsAreWrittenReadCopiedAndPoisoned) {
  const PageShape shape{2, 4, 16, DType::kInt8};
  EXPECT(shape.row_elements() == 20 && shape.num_bytes() == 2 * 2 * 4 * 20);
  std::vector<int8_t> pages(4 * shape.num_bytes(), 1);
  std::mt19937 rng(2);
  std::vector<float> k = RandomRow(&rng, 3 * 32, 1.f), v = RandomRow(&rng, 3 * 32, 4.f);
  const KVRows k_rows{k.data(), DType::kFloat32, 32}, v_rows{v.data(), DType::kFloat32, 32};
  const std::vector<int32_t> slots{9, 2, 7};
  WriteSlotsCpu(shape, pages.data(), slots.data(), 3, k_rows, v_rows);
  std::vector<float> k_read(k.size()), v_read(v.size());
  const auto read = [&](const std::vector<int32_t>& from) {
    ReadSlotsCpu(shape, pages.data(), from.data(), 3, {k_read.data(), DType::kFloat32, 32},
                 {v_read.data(), DType::kFloat32, 32});
  };
  read(slots);
  for (int32_t head = 0; head < 6; ++head) {
    const std::vector<float> row(k.begin() + head * 16, k.begin() + (head + 1) * 16);
    EXPECT(std::equal(row.begin(), row.end(), k_read.begin() + head * 16) == false);
    const std::vector<float> expected = Row(row).values;
    EXPECT(std::equal(expected.begin(), expected.end(), k_read.begin() + head * 16));
  }
  // Rows as they lie in pages go out and in unchanged.
  std::vector<int8_t> k_stored(3 * 40), v_stored(3 * 40);
  const KVRows k_bytes{k_stored.data(), DType::kInt8, 40},
      v_bytes{v_stored.data(), DType::kInt8, 40};
  ReadSlotsCpu(shape, pages.data(), slots.data(), 3, k_bytes, v_bytes);
  const std::vector<float> k_before = k_read, v_before = v_read;
  const std::vector<int32_t> others{0, 1, 11};
  WriteSlotsCpu(shape, pages.data(), others.data(), 3, k_bytes, v_bytes);
  read(others);
  EXPECT(k_read == k_before && v_read == v_before);
  // Single slots, and pages.
  CopySlotCpu(shape, pages.data(), 9, 4);
  CopyPageCpu(shape, pages.data(), 1, 3);
  read({4, 12, 15});
  EXPECT(std::equal(k_before.begin(), k_before.begin() + 32, k_read.begin()));
  EXPECT(std::equal(v_before.begin(), v_before.begin() + 32, v_read.begin() + 32));
  EXPECT(std::equal(v_before.begin() + 64, v_before.end(), v_read.begin() + 64));
  PoisonSlotCpu(shape, pages.data(), 9);
  read(slots);
  for (int32_t i = 0; i < 32; ++i) EXPECT(std::isnan(k_read[i]) && std::isnan(v_read[i]));
  EXPECT(std::equal(k_before.begin() + 32, k_before.end(), k_read.begin() + 32));
}

}  // namespace kvctl
