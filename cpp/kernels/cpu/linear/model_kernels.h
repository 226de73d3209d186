/*!
 * \file kernels/cpu/linear/model_kernels.h
 * \brief The kernels of a model's layers, per instruction set.
 */
#ifndef KVCTL_KERNELS_CPU_LINEAR_MODEL_KERNELS_H_
#define KVCTL_KERNELS_CPU_LINEAR_MODEL_KERNELS_H_

#include <cstdint>

#include "kernels/isa.h"

namespace kvctl {

/*! \brief One matrix product over packed panels; see kernels/linear.h for the layout. */
struct PanelProduct {
  const float* x;       //!< (m, k) row-major
  const void* panels;   //!< ceil(n / panel_width) panels of k * panel_width weights
  const float* addend;  //!< (m, n) or nullptr
  float* out;           //!< (m, n)
  int64_t m;
  int64_t n;
  int64_t k;
};

/*! \brief The kernels of one instruction set. */
struct ModelKernels {
  int panel_width;  //!< output columns of a panel
  /*! \brief Computes the output columns of panels [begin, end), from float32 or bfloat16 weights.
   */
  void (*linear_f32)(const PanelProduct& product, int64_t begin, int64_t end);
  void (*linear_bf16)(const PanelProduct& product, int64_t begin, int64_t end);
  /*! \brief One row of RmsNorm. */
  void (*rms_norm)(const float* x, const float* weight, int64_t cols, float epsilon, float* out);
  /*! \brief out[i] = silu(gate[i]) * up[i]. */
  void (*silu_mul)(const float* gate, const float* up, int64_t cols, float* out);
};

extern const ModelKernels kModelKernelsBaseline;
extern const ModelKernels kModelKernelsAvx2;
extern const ModelKernels kModelKernelsAvx512;

/*! \brief The kernels of an instruction set, which this machine must support. */
const ModelKernels& ModelKernelsFor(Isa isa);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_LINEAR_MODEL_KERNELS_H_
