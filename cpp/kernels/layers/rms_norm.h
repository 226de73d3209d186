/*!
 * \file kernels/layers/rms_norm.h
 * \brief RMSNorm (Zhang and Sennrich 2019, eq. 4) of rows.
 */
#ifndef KVCTL_KERNELS_LAYERS_RMS_NORM_H_
#define KVCTL_KERNELS_LAYERS_RMS_NORM_H_

#include <cstdint>

namespace kvctl {

/*!
 * \brief out[i] = x[i] / sqrt(mean(x²) + epsilon) * weight[i] for each row.
 *
 * A row's result depends on that row alone.
 * \param x (rows, cols) float32; out may be x itself.
 * \param weight (cols,) float32.
 */
void RmsNorm(const float* x, const float* weight, int64_t rows, int64_t cols, float epsilon,
             float* out);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_LAYERS_RMS_NORM_H_
