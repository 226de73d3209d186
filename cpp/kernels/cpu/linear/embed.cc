#include "kernels/layers/embed.h"

#include <cstring>

#include "kvctl/error.h"

namespace kvctl {

void TakeRows(const float* table, int64_t rows, int64_t cols, const int32_t* indices, int64_t count,
              float* out) {
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] < 0 || indices[i] >= rows) {
      Throw(ErrorKind::kIndex, "index ", indices[i], " at position ", i,
            " is outside the table of ", rows,
            " rows (token ids must be below the vocabulary size)");
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(out + i * cols, table + indices[i] * cols, sizeof(float) * cols);
  }
}

}  // namespace kvctl
