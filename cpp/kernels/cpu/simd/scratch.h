/*!
 * \file kernels/cpu/simd/scratch.h
 * \brief Memory of a thread for the inputs of a linear layer, converted.
 */
#ifndef KVCTL_KERNELS_CPU_SIMD_SCRATCH_H_
#define KVCTL_KERNELS_CPU_SIMD_SCRATCH_H_

#include <cstddef>

namespace kvctl {

/*!
 * \brief Bytes of the calling thread, aligned to 64 and good until its next call.
 *
 * They are kept for the next product. Throws std::bad_alloc.
 */
void* LinearScratch(size_t bytes);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SIMD_SCRATCH_H_
