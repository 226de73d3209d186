/*!
 * \file kernels/silu_mul.h
 * \brief The gate of a SwiGLU feed-forward layer (Shazeer 2020).
 */
#ifndef KVCTL_KERNELS_SILU_MUL_H_
#define KVCTL_KERNELS_SILU_MUL_H_

#include <cstdint>

namespace kvctl {

/*!
 * \brief out[i] = g / (1 + exp(-g)) * u with g = gate_up[i], u = gate_up[cols + i], for each row.
 * \param gate_up (rows, 2 * cols) float32.
 * \param out (rows, cols) float32.
 */
void SiluMul(const float* gate_up, int64_t rows, int64_t cols, float* out);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_SILU_MUL_H_
