#include <cmath>

#include "core/sampling/distribution.h"
#include "core/support/exact_math.h"
#include "kernels/cuda/device/elements.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/verify/reduce.cuh"
#include "kernels/cuda/verify/verify.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = kVocabBlock / kThreads;

/*! \brief The largest value and the first token that has it. */
struct Largest {
  float value;
  int32_t token;
  __device__ void Take(float other, int32_t other_token) {
    if (other > value || (other == value && other_token < token)) {
      value = other;
      token = other_token;
    }
  }
};

__device__ void SumLogits(const RowJob& job, int32_t begin, int32_t size, BlockSum* sum,
                          Largest* warps, uint64_t* warp_sums) {
  float logits[kPerThread];
  Largest largest{-INFINITY, INT32_MAX};
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int32_t at = i * kThreads + static_cast<int32_t>(threadIdx.x);
    logits[i] = -INFINITY;
    if (at < size) logits[i] = LoadElement(job.values, job.type, begin + at);
    largest.Take(logits[i], begin + at);
  }
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) {
    const float value = __shfl_xor_sync(kAllLanes, largest.value, delta);
    const int32_t token = __shfl_xor_sync(kAllLanes, largest.token, delta);
    largest.Take(value, token);
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int i = 0; i < kThreads / 32; ++i) largest.Take(warps[i].value, warps[i].token);

  const float top = largest.value * job.scale;
  const bool regular = fabsf(top) < kMaxExponent;
  const float exponent = ceilf(top);
  const ExpGrid grid = MakeExpGrid(job.scale, exponent);
  uint64_t total = 0;
  if (regular) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (i * kThreads + static_cast<int32_t>(threadIdx.x) < size) {
        total += ToFixed(Exp2Scaled(logits[i], grid));
      }
    }
  }
  total = WarpSum(total);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum->max = largest.value;
  sum->first = largest.token;
  sum->exponent = regular ? static_cast<int32_t>(exponent) : top < 0 ? kEmptyBlock : INT32_MAX;
  sum->exp_sum = 0;
  for (int i = 0; i < kThreads / 32; ++i) sum->exp_sum += warp_sums[i];
}

__device__ void SumDistribution(const RowJob& job, int32_t begin, int32_t size, BlockSum* sum,
                                double* warp_sums) {
  double total = 0;
  for (int32_t at = threadIdx.x; at < size; at += kThreads) {
    const double p = job.distribution_f64 != 0 ? static_cast<const double*>(job.values)[begin + at]
                                               : static_cast<const float*>(job.values)[begin + at];
    total += p >= 0 && p <= 1.001 ? ToGrid(p) : NAN;
  }
  total = WarpSum(total);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum->distribution_sum = 0;
  for (int i = 0; i < kThreads / 32; ++i) sum->distribution_sum += warp_sums[i];
}

/*! \brief A block per (row, kVocabBlock of its tokens). Each token is read once. */
__global__ void __launch_bounds__(kThreads) SumRowsKernel(VerifyParams params) {
  KVCTL_DYNAMIC_SHARED(shared);
  RowJob job = reinterpret_cast<const RowJob*>(reinterpret_cast<const char*>(params.plan) +
                                               params.plan->rows.jobs)[blockIdx.x];
  if (job.scratch_row >= 0) {
    job.values = params.scratch + static_cast<int64_t>(job.scratch_row) * params.vocab_size;
  }
  const int32_t begin = static_cast<int32_t>(blockIdx.y) * kVocabBlock;
  const int32_t rest = params.vocab_size - begin;
  const int32_t size = rest < kVocabBlock ? rest : kVocabBlock;
  BlockSum* sum = params.sums + static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y;
  auto* sums = reinterpret_cast<uint64_t*>(shared);
  if (job.distribution != 0) {
    SumDistribution(job, begin, size, sum, reinterpret_cast<double*>(shared));
  } else {
    SumLogits(job, begin, size, sum, reinterpret_cast<Largest*>(sums + kThreads / 32), sums);
  }
}

}  // namespace

cudaError_t SumRows(const VerifyParams& params, cudaStream_t stream) {
  if (params.num_jobs == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((params.vocab_size + kVocabBlock - 1) / kVocabBlock);
  return Launch(SumRowsKernel, dim3(static_cast<unsigned>(params.num_jobs), blocks), dim3(kThreads),
                kThreads / 32 * (sizeof(uint64_t) + sizeof(Largest)), stream, params);
}

}  // namespace kvctl::cuda
