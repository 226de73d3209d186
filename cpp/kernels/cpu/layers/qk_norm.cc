#include "kernels/layers/qk_norm.h"

#include <algorithm>

#include "kernels/layers/rms_norm.h"
#include "kernels/team.h"

namespace kvctl {
namespace {

/*! \brief Normalises some columns of one row, group by group. */
void NormRow(const float* x, const NormedColumns& part, float epsilon, float* out) {
  RmsNorm(x, part.weight, part.cols / part.group, part.group, epsilon, out);
}

}  // namespace

void QkNorm(const float* qkv, int64_t rows, int64_t cols, const NormedColumns& q,
            const NormedColumns& k, float epsilon, float* out) {
  const int64_t rest = q.cols + k.cols;
  for (int64_t r = 0; r < rows; ++r) {
    const float* in = qkv + r * cols;
    float* to = out + r * cols;
    NormRow(in, q, epsilon, to);
    NormRow(in + q.cols, k, epsilon, to + q.cols);
    if (in != to) std::copy(in + rest, in + cols, to + rest);
  }
}

}  // namespace kvctl
