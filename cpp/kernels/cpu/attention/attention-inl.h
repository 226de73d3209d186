/*!
 * \file kernels/cpu/attention/attention-inl.h
 * \brief The attention kernels of the instruction set that the including file is compiled for.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_INL_H_

#include "kernels/cpu/attention/attention_kernel-inl.h"
#include "kernels/cpu/attention/attention_observe-inl.h"
#include "kernels/cpu/attention/attention_unit.h"

namespace kvctl {
namespace {

constexpr AttentionKernels kAttentionKernels = {kHeadDims, ScratchFloats, Attend, Finish, Observe};

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_INL_H_
