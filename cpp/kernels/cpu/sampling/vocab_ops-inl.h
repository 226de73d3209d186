/*!
 * \file kernels/cpu/sampling/vocab_ops-inl.h
 * \brief The table of loops over the vocabulary for the instruction set that the including file is
 * compiled for: AVX2 or AVX-512.
 */
#ifndef KVCTL_KERNELS_CPU_SAMPLING_VOCAB_OPS_INL_H_
#define KVCTL_KERNELS_CPU_SAMPLING_VOCAB_OPS_INL_H_

#include "core/sampling/vocab_ops.h"
#include "kernels/convert.h"
#include "kernels/cpu/sampling/vocab_loops-inl.h"
#include "kernels/cpu/sampling/vocab_units.h"

namespace kvctl {
namespace {

VocabOps LoopTable() {
  return {MaxLoop,
          FindLoop,
          MaskLoop,
          ExpSumLoop,
          WeightsFromExpsLoop,
          WeightsFromLogitsLoop,
          WeightsFromF32Loop,
          WeightsFromF64Loop,
          SubtractLoop,
          RestFromLogitsLoop,
          ToFloatLoop<Float16>,
          ToFloatLoop<BFloat16>,
          GumbelAvx2};
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SAMPLING_VOCAB_OPS_INL_H_
