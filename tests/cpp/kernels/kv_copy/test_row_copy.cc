#include <numeric>
#include <vector>

#include "check.h"
#include "kernels/row_copy.h"

namespace {

/*! \brief Reverses the order of rows, leaving one target row alone. */
void CheckReversed(int64_t rows, size_t row_bytes) {
  std::vector<unsigned char> source(rows * row_bytes);
  for (size_t i = 0; i < source.size(); ++i)
    source[i] = static_cast<unsigned char>(i * 31 + i / 251);
  std::vector<unsigned char> target((rows + 1) * row_bytes, 0xEE);
  std::vector<kvctl::RowMove> moves;
  for (int32_t row = 0; row < rows; ++row) {
    moves.push_back({row, static_cast<int32_t>(rows) - row});
  }
  kvctl::CopyRowsCpu(source.data(), target.data(), moves.data(), rows, row_bytes);
  int64_t wrong = 0;
  for (size_t i = 0; i < row_bytes; ++i) wrong += target[i] != 0xEE;
  for (int64_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < row_bytes; ++i) {
      wrong += target[(rows - row) * row_bytes + i] != source[row * row_bytes + i];
    }
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace

TEST(row_copy_small) { CheckReversed(5, 12); }
TEST(row_copy_not_a_multiple_of_a_block) { CheckReversed(7, (64 << 10) + 1); }
TEST(row_copy_parallel) { CheckReversed(40, 200001); }
TEST(row_copy_nothing) { kvctl::CopyRowsCpu(nullptr, nullptr, nullptr, 0, 8); }
