/*!
 * \file kernels/cuda/kv_copy/slots.cuh
 * \brief Moving, reading, setting and poisoning slots of pages on a device; see kernels/kv_copy.h.
 *
 * Pointers are device pointers; launches go to the given stream and return the launch's error.
 */
#ifndef KVCTL_KERNELS_CUDA_KV_COPY_SLOTS_CUH_
#define KVCTL_KERNELS_CUDA_KV_COPY_SLOTS_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/device/float8_scales.h"
#include "kernels/kv_copy.h"

namespace kvctl::cuda {

/*! \brief Copy the K and V of slot `source` to slot `target`, in every layer. */
struct SlotPair {
  int32_t source, target;
};

/*!
 * \brief Moves slots in every layer, in one launch: the compaction of a commit.
 *
 * The first num_copies pairs take effect before the others. Within each part no target is the
 * source of a later pair (it may be that of an earlier one), and targets are distinct.
 *
 * \param layers [num_layers] the pages of each layer.
 */
cudaError_t MoveSlots(const PageShape& shape, void* const* layers, int32_t num_layers,
                      const SlotPair* pairs, int32_t num_copies, int32_t num_pairs,
                      cudaStream_t stream);

/*! \brief Copies between slots of one layer and rows of K and V, with conversion, as WriteSlotsCpu
 * does. Rows of kFloat8 are the bytes of such pages; other rows are the values, and those of
 * kFloat8 pages are divided by, or multiplied by, their scales. */
cudaError_t WriteSlots(const PageShape& shape, void* pages, const int32_t* slots, int64_t num_rows,
                       const KVRows& k, const KVRows& v, const Float8Scales& float8,
                       cudaStream_t stream);
cudaError_t ReadSlots(const PageShape& shape, const void* pages, const int32_t* slots,
                      int64_t num_rows, const KVRows& k, const KVRows& v,
                      const Float8Scales& float8, cudaStream_t stream);
/*! \brief Fills slots of one layer with NaN. */
cudaError_t PoisonSlots(const PageShape& shape, void* pages, const int32_t* slots, int64_t num_rows,
                        cudaStream_t stream);

/*!
 * \brief RopeSlotsCpu in every layer: rotates the key in slots[i] by row i of a table.
 * \param table [num_slots, rotary_dim] RopeTable's rows.
 * \param num_saturated Float8Scales's: a rotated key may have a larger element than before.
 */
cudaError_t RotateSlots(const PageShape& shape, void* const* layers, int32_t num_layers,
                        const int32_t* slots, const float* table, int32_t num_slots,
                        int32_t rotary_dim, unsigned long long* num_saturated, cudaStream_t stream);

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_KV_COPY_SLOTS_CUH_
