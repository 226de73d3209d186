/*!
 * \file kernels/cuda/kv_copy.cuh
 * \brief Moving K and V in and out of pages on a CUDA device; the counterpart of kernels/kv_copy.h.
 *
 * Pointers are device pointers. Every launch goes to the given stream and returns the launch's
 * error.
 */
#ifndef KVCTL_KERNELS_CUDA_KV_COPY_CUH_
#define KVCTL_KERNELS_CUDA_KV_COPY_CUH_

#include <cuda_runtime.h>

#include <cstdint>

namespace kvctl::cuda {

/*! \brief The shape of a page of one layer; elements of `element_size` bytes (2 or 4). */
struct PageGeometry {
  int32_t num_kv_heads;
  int32_t page_size;
  int32_t head_dim;
  int32_t element_size;
};

/*!
 * \brief Writes rows of K and V, of the pages' type, into their slots.
 * \param slots [num_rows] page * page_size + offset.
 * \param k, v Rows of [num_kv_heads, head_dim], row_stride elements apart.
 */
cudaError_t WriteSlots(const PageGeometry& geometry, void* pages, const int32_t* slots,
                       int64_t num_rows, const void* k, const void* v, int64_t row_stride,
                       cudaStream_t stream);

/*!
 * \brief Copies slots onto others in every layer: the compaction of a commit, in one launch.
 *
 * Moves are carried out through `scratch`, since a target may be the source of another move.
 *
 * \param layers [num_layers] the pages of each layer.
 * \param sources, targets [num_moves] slots.
 * \param scratch num_layers * num_moves * 2 * num_kv_heads * head_dim elements.
 */
cudaError_t MoveSlots(const PageGeometry& geometry, void* const* layers, int32_t num_layers,
                      const int32_t* sources, const int32_t* targets, int32_t num_moves,
                      void* scratch, cudaStream_t stream);

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_KV_COPY_CUH_
