#include "kernels/cpu/linear/model_kernels.h"
#include "kernels/layers/activation.h"
#include "kernels/team.h"

namespace kvctl {

void SiluMul(const float* gate_up, int64_t rows, int64_t cols, float* out) {
  const auto row = ModelKernelsFor(CpuIsa()).silu_mul;
  // Below a few thousand elements waking threads costs more than the work.
#pragma omp parallel for schedule(static) if (UseTeam(rows > 1 && rows * cols > (1 << 12)))
  for (int64_t r = 0; r < rows; ++r) {
    const float* gate = gate_up + r * 2 * cols;
    row(gate, gate + cols, cols, out + r * cols);
  }
}

}  // namespace kvctl
