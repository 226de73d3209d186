/*!
 * \file kernels/cpu/sampling/vocab_units.h
 * \brief The tables of core/sampling/vocab_ops.h that are compiled for one instruction set each.
 */
#ifndef KVCTL_KERNELS_CPU_SAMPLING_VOCAB_UNITS_H_
#define KVCTL_KERNELS_CPU_SAMPLING_VOCAB_UNITS_H_

#include "core/sampling/vocab_ops.h"

namespace kvctl {

const VocabOps& Avx2VocabOps();
const VocabOps& Avx512VocabOps();
/*! \brief VocabOps::gumbel for AVX2, in the table of AVX-512 too. */
int32_t GumbelAvx2(const float* exps, int32_t first_token, int32_t n, const NoiseKey& key,
                   double* best);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SAMPLING_VOCAB_UNITS_H_
