#include "kernels/layers/rms_norm.h"

#include "kernels/cpu/linear/model_kernels.h"
#include "kernels/team.h"

namespace kvctl {

void RmsNorm(const float* x, const float* weight, int64_t rows, int64_t cols, float epsilon,
             float* out) {
  const auto row = ModelKernelsFor(CpuIsa()).rms_norm;
  // Below a few thousand elements waking threads costs more than the work.
#pragma omp parallel for schedule(static) if (UseTeam(rows > 1 && rows * cols > (1 << 14)))
  for (int64_t r = 0; r < rows; ++r) row(x + r * cols, weight, cols, epsilon, out + r * cols);
}

}  // namespace kvctl
