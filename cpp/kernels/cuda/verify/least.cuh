/*!
 * \file kernels/cuda/verify/least.cuh
 * \brief The token with the least score, the lower id of equals; and scores of Gumbel noise.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_LEAST_CUH_
#define KVCTL_KERNELS_CUDA_VERIFY_LEAST_CUH_

#include <cmath>
#include <cstdint>

#include "core/support/exact_math.h"
#include "core/support/rng.h"
#include "kernels/cuda/verify/reduce.cuh"
#include "kernels/cuda/verify/verify_plan.h"

namespace kvctl::cuda {

/*! \brief In any order of the tokens. */
struct Least : TokenScore {
  __device__ Least() : TokenScore{INFINITY, INT32_MAX, 0} {}
  __device__ void Take(double other, int32_t other_token) {
    if (other < score || (other == score && other_token < token)) {
      score = other;
      token = other_token;
    }
  }
};

/*! \brief The least of a warp's lanes, in every lane. */
__device__ inline Least LeastOfWarp(Least least) {
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) {
    const double score = __shfl_xor_sync(kAllLanes, least.score, delta);
    const int32_t token = __shfl_xor_sync(kAllLanes, least.token, delta);
    least.Take(score, token);
  }
  return least;
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_LEAST_CUH_
