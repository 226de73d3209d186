/*!
 * \file kernels/layers/activation.h
 * \brief The non-linear functions of feed-forward layers.
 */
#ifndef KVCTL_KERNELS_LAYERS_ACTIVATION_H_
#define KVCTL_KERNELS_LAYERS_ACTIVATION_H_

#include <cstdint>
#include <string_view>

namespace kvctl {

/*! \brief What a feed-forward layer applies between its products. */
enum class Activation {
  kSilu,      //!< x / (1 + exp(-x))
  kGelu,      //!< x times the normal distribution's cumulative function, by erf
  kGeluTanh,  //!< the same by its approximation with tanh (Hendrycks and Gimpel 2016)
  kRelu,
};

/*! \throws Error kValue unless the name is "silu", "gelu", "gelu_tanh" or "relu". */
Activation ActivationOf(std::string_view name);

/*! \brief out = f(x) for `count` elements; in and out may be the same memory. */
void Activate(const float* x, int64_t count, Activation activation, float* out);

/*!
 * \brief out[i] = f(gate_up[i]) * gate_up[cols + i], for each row.
 * \param gate_up (rows, 2 * cols) float32.
 * \param out (rows, cols) float32.
 */
void GatedActivate(const float* gate_up, int64_t rows, int64_t cols, Activation activation,
                   float* out);

/*!
 * \brief GatedActivate with kSilu (SwiGLU, Shazeer 2020), by the vectors of this machine.
 *
 * Its exponential is not that of the C library: results differ in the last bits.
 */
void SiluMul(const float* gate_up, int64_t rows, int64_t cols, float* out);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_LAYERS_ACTIVATION_H_
