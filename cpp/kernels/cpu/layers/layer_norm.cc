#include "kernels/layers/layer_norm.h"

#include <cmath>

#include "kernels/team.h"

namespace kvctl {

void LayerNorm(const float* x, const float* weight, const float* bias, int64_t rows, int64_t cols,
               float epsilon, float* out) {
  // Below a few thousand elements waking threads costs more than the work.
#pragma omp parallel for schedule(static) if (UseTeam(rows > 1 && rows * cols > (1 << 14)))
  for (int64_t r = 0; r < rows; ++r) {
    const float* in = x + r * cols;
    double sum = 0.0, squares = 0.0;
    for (int64_t i = 0; i < cols; ++i) sum += in[i];
    const double mean = sum / static_cast<double>(cols);
    for (int64_t i = 0; i < cols; ++i) squares += (in[i] - mean) * (in[i] - mean);
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(cols) + epsilon);
    for (int64_t i = 0; i < cols; ++i) {
      out[r * cols + i] = static_cast<float>((in[i] - mean) * scale) * weight[i] + bias[i];
    }
  }
}

}  // namespace kvctl
