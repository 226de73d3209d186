#include <cmath>

#include "core/sampling/distribution.h"
#include "core/support/exact_math.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/verify/reduce.cuh"
#include "kernels/cuda/verify/row_vectors.cuh"
#include "kernels/cuda/verify/verify.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVectors = kVocabBlock / kThreads / kVectorTokens;

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

__device__ void SumLogits(const RowJob& job, int32_t begin, int32_t end, bool vectors,
                          BlockSum* sum, Largest* warps, uint64_t* warp_sums) {
  const TokenSpread spread =
      ShareTokens(begin, static_cast<int32_t>(threadIdx.x), kThreads, vectors);
  float logits[kVectors][kVectorTokens];
  LoadTokens(job.values, job.type, vectors, spread, end, -INFINITY, logits);
  Largest largest{-INFINITY, INT32_MAX};
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
#pragma unroll
    for (int j = 0; j < kVectorTokens; ++j) largest.Take(logits[v][j], spread.at(v, j));
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
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int j = 0; j < kVectorTokens; ++j) {
        if (spread.at(v, j) < end) total += ToFixed(Exp2Scaled(logits[v][j], grid));
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

__device__ double CheckedGrid(double p) { return p >= 0 && p <= 1.001 ? ToGrid(p) : NAN; }

__device__ void SumDistribution(const RowJob& job, int32_t begin, int32_t end, bool vectors,
                                BlockSum* sum, double* warp_sums) {
  const TokenSpread spread =
      ShareTokens(begin, static_cast<int32_t>(threadIdx.x), kThreads, vectors);
  double total = 0;
  if (job.distribution_f64 != 0) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      double probs[kVectorTokens];
      LoadDoubles(static_cast<const double*>(job.values), vectors, spread, v, end, probs);
      for (const double p : probs) total += CheckedGrid(p);
    }
  } else {
    float probs[kVectors][kVectorTokens];
    LoadTokens(job.values, DType::kFloat32, vectors, spread, end, 0.f, probs);
#pragma unroll
    for (const auto& vector : probs) {
      for (const float p : vector) total += CheckedGrid(p);
    }
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
  WaitForPrevious();
  LetNextCome();
  RowJob job = reinterpret_cast<const RowJob*>(reinterpret_cast<const char*>(params.plan) +
                                               params.plan->rows.jobs)[blockIdx.x];
  if (job.scratch_row >= 0) {
    job.values = params.scratch + static_cast<int64_t>(job.scratch_row) * params.vocab_size;
  }
  const int32_t begin = static_cast<int32_t>(blockIdx.y) * kVocabBlock;
  const int32_t end = min(begin + kVocabBlock, params.vocab_size);
  const int32_t element = job.distribution_f64 != 0 ? 8 : ElementBytes(job.type);
  const bool vectors = HasVectors(job.values, element, params.vocab_size);
  BlockSum* sum = params.sums + static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y;
  auto* sums = reinterpret_cast<uint64_t*>(shared);
  if (job.distribution != 0) {
    SumDistribution(job, begin, end, vectors, sum, reinterpret_cast<double*>(shared));
  } else {
    SumLogits(job, begin, end, vectors, sum, reinterpret_cast<Largest*>(sums + kThreads / 32),
              sums);
  }
}

}  // namespace

cudaError_t SumRows(const VerifyParams& params, cudaStream_t stream) {
  if (params.num_jobs == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((params.vocab_size + kVocabBlock - 1) / kVocabBlock);
  const bool first = params.num_processed == 0;
  return LaunchOverlapping(params.overlaps && !first, SumRowsKernel,
                           dim3(static_cast<unsigned>(params.num_jobs), blocks), dim3(kThreads),
                           kThreads / 32 * (sizeof(uint64_t) + sizeof(Largest)), stream, params);
}

}  // namespace kvctl::cuda
