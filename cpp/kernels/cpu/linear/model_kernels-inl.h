/*!
 * \file kernels/cpu/linear/model_kernels-inl.h
 * \brief The kernels of a model's layers for the instruction set that the including file is
 * compiled for.
 */
#ifndef KVCTL_KERNELS_CPU_LINEAR_MODEL_KERNELS_INL_H_
#define KVCTL_KERNELS_CPU_LINEAR_MODEL_KERNELS_INL_H_

#include "kernels/cpu/linear/linear_tile-inl.h"
#include "kernels/cpu/linear/model_kernels.h"
#include "kernels/cpu/linear/rms_norm_row-inl.h"
#include "kernels/cpu/linear/silu_mul_row-inl.h"

namespace kvctl {
namespace {

constexpr ModelKernels kModelKernels = {kPanelWidth, LinearPanels<float>, LinearPanels<uint16_t>,
                                        RmsNormRow, SiluMulRow};

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_LINEAR_MODEL_KERNELS_INL_H_
