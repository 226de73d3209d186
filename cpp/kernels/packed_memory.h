/*!
 * \file kernels/packed_memory.h
 * \brief Memory for packed weights, in huge pages where the system has them.
 *
 * Weights are read as streams, and the processor prefetches only within a page. Weights that are
 * small beside a huge page lie one behind another in slabs, in the order in which they were packed:
 * that of a model's layers.
 */
#ifndef KVCTL_KERNELS_PACKED_MEMORY_H_
#define KVCTL_KERNELS_PACKED_MEMORY_H_

#include <cstddef>

namespace kvctl {

/*!
 * \brief Memory of that many bytes, aligned to 64. Any thread may call.
 *
 * A slab is freed with the last weight in it. Only its part that was in use takes memory.
 *
 * \throws std::bad_alloc
 */
void* NewPackedMemory(size_t bytes);

/*! \brief Frees what NewPackedMemory returned; nullptr is nothing. */
void FreePackedMemory(void* memory);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_PACKED_MEMORY_H_
