#include "check.h"
#include "kernels/layers/embed.h"

TEST(TakeRowsCopiesRows) {
  const float table[] = {0, 1, 10, 11, 20, 21};
  const int32_t indices[] = {2, 0, 2};
  float out[6] = {};
  kvctl::TakeRows(table, 3, 2, indices, 3, out);
  const float wanted[] = {20, 21, 0, 1, 20, 21};
  for (int i = 0; i < 6; ++i) EXPECT_EQ(out[i], wanted[i]);
}

TEST(TakeRowsChecksEveryIndexBeforeItWrites) {
  const float table[] = {1, 2, 3};
  for (int32_t bad : {3, -1, 1 << 30}) {
    const int32_t indices[] = {0, bad};
    float out[2] = {-7, -7};
    EXPECT_ERROR(kvctl::TakeRows(table, 3, 1, indices, 2, out), kIndex, "at position 1");
    EXPECT_EQ(out[0], -7.0f);
  }
}
