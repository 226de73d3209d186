/*!
 * \file kernels/layers/layer_norm.h
 * \brief Layer normalisation (Ba et al. 2016, arXiv:1607.06450).
 */
#ifndef KVCTL_KERNELS_LAYERS_LAYER_NORM_H_
#define KVCTL_KERNELS_LAYERS_LAYER_NORM_H_

#include <cstdint>

namespace kvctl {

/*!
 * \brief out = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias, for each row.
 * \param x, out (rows, cols) float32; they may be the same memory.
 * \param weight, bias (cols,) float32.
 */
void LayerNorm(const float* x, const float* weight, const float* bias, int64_t rows, int64_t cols,
               float epsilon, float* out);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_LAYERS_LAYER_NORM_H_
