/*!
 * \file kernels/cuda/verify/reduce.cuh
 * \brief Sums over the lanes of a warp, and over threads that come in any order.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_REDUCE_CUH_
#define KVCTL_KERNELS_CUDA_VERIFY_REDUCE_CUH_

#include <cuda_runtime.h>

#include <cstdint>

namespace kvctl::cuda {

constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

/*! \brief The sum over a warp, in every lane. Exact for integers, in any order. */
template <typename T>
__device__ T WarpSum(T value) {
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) value += __shfl_xor_sync(kAllLanes, value, delta);
  return value;
}

__device__ inline void AddAtomically(uint64_t value, uint64_t* sum) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}

/*! \brief The sum over the lanes up to this one. */
template <typename T>
__device__ T WarpPrefix(T value) {
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    const T before = __shfl_up_sync(kAllLanes, value, delta);
    if (static_cast<int>(threadIdx.x % 32) >= delta) value += before;
  }
  return value;
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_REDUCE_CUH_
