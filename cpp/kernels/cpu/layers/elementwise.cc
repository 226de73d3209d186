#include "kernels/layers/elementwise.h"

#include <cmath>

#include "kernels/team.h"

namespace kvctl {
namespace {

// Below some ten thousand elements waking threads costs more than the work.
constexpr int64_t kParallelElements = 1 << 14;

}  // namespace

void AddBias(const float* x, const float* bias, int64_t rows, int64_t cols, float* out) {
#pragma omp parallel for schedule(static) if (UseTeam(rows > 1 && rows * cols > kParallelElements))
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < cols; ++i) out[r * cols + i] = x[r * cols + i] + bias[i];
  }
}

void SoftCap(const float* x, int64_t count, float cap, float* out) {
#pragma omp parallel for schedule(static) if (UseTeam(count > kParallelElements))
  for (int64_t i = 0; i < count; ++i) out[i] = cap * std::tanh(x[i] / cap);
}

void ScaleAdd(const float* x, int64_t count, float factor, const float* addend, float* out) {
#pragma omp parallel for schedule(static) if (UseTeam(count > kParallelElements))
  for (int64_t i = 0; i < count; ++i) {
    out[i] = addend == nullptr ? x[i] * factor : x[i] * factor + addend[i];
  }
}

}  // namespace kvctl
