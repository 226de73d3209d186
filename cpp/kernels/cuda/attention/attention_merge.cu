#include "kernels/cuda/attention/attention_tile.cuh"
#include "kernels/cuda/device/elements.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace kvctl::cuda {
namespace {

template <int kSize>
struct alignas(4 * kSize) Floats {
  float at[kSize];
};

/*!
 * \brief A warp per query. Lane i reads the scale of partial result i, so that those of 32 are read
 * at once; the sums come in vectors, their weights by shuffles. The grid has fewer than 7 blocks
 * for each processor: without that bound, ptxas makes room for 12 and spills registers.
 *
 * kMaxHeadDim: the head_dim if kExact, else the least of the kernels' that is not below it.
 */
template <int kMaxHeadDim, bool kExact>
__global__ void __launch_bounds__(kThreads, 6) MergeKernel(AttentionParams params) {
  constexpr int kSize = kMaxHeadDim >= 128 ? 4 : 2;  // floats of a vector
  constexpr int kVectors = kMaxHeadDim / 32 / kSize;
  const int32_t head_dim = kExact ? kMaxHeadDim : params.page.head_dim;
  const PlanHeader* plan = params.plan;
  if (plan->misfit != 0) return;
  const PlanClass work = ClassOf(plan, params.layer);
  const MergeItem* merges = PlanPart<MergeItem>(plan, plan->merges) + work.first_merge;
  const int32_t lane = threadIdx.x % 32, num_warps = gridDim.x * kWarps;
  for (int32_t unit = blockIdx.x * kWarps + threadIdx.x / 32;
       unit < work.num_merges * kMaxItemQueries; unit += num_warps) {
    const MergeItem merge = merges[unit / kMaxItemQueries];
    const int32_t query = unit % kMaxItemQueries;
    const int32_t queries = (merge.token_end - merge.token_begin) * params.group;
    if (query >= queries) continue;
    const float2* scales = params.partials.scale + merge.partial + query;
    const float* sums = params.partials.sums +
                        static_cast<int64_t>(merge.partial + query) * head_dim + lane * kSize;
    float m = -INFINITY, l = 0;
    for (int32_t i = lane; i < merge.num_partials; i += 32) {
      m = fmaxf(m, scales[static_cast<int64_t>(i) * queries].x);
    }
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) {
      m = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, delta));
    }
    Floats<kSize> total[kVectors] = {};
    for (int32_t first = 0; first < merge.num_partials; first += 32) {
      const int32_t count = min(32, merge.num_partials - first);
      float weight = 0;
      if (lane < count) {
        const float2 scale = scales[static_cast<int64_t>(first + lane) * queries];
        weight = Weight(scale.x, m);
        l += scale.y * weight;
      }
#pragma unroll 4
      for (int32_t i = 0; i < count; ++i) {
        const float w = __shfl_sync(0xFFFFFFFFu, weight, i);
        const float* from = sums + static_cast<int64_t>(first + i) * queries * head_dim;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          if (!kExact && (v * 32 + lane) * kSize >= head_dim) continue;
          const auto part = *reinterpret_cast<const Floats<kSize>*>(from + v * 32 * kSize);
#pragma unroll
          for (int j = 0; j < kSize; ++j) total[v].at[j] += part.at[j] * w;
        }
      }
    }
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) l += __shfl_xor_sync(0xFFFFFFFFu, l, delta);
    const PlanSequence& sequence = PlanPart<PlanSequence>(plan, plan->sequences)[merge.sequence];
    const int64_t token = sequence.query_begin + merge.token_begin + query / params.group;
    const int32_t head = merge.kv_head * params.group + query % params.group;
    const QueryResult result(m, l, params.sinks, head);
    const int64_t out = token * params.out.row_stride + static_cast<int64_t>(head) * head_dim;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (!kExact && (v * 32 + lane) * kSize >= head_dim) continue;
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        StoreElement(total[v].at[j] * result.factor, params.out.data, params.out.dtype,
                     out + (v * 32 + lane) * kSize + j);
      }
    }
    if (lane == 0 && params.lse != nullptr) {
      params.lse[token * params.num_qo_heads + head] = result.lse;
    }
  }
}

using Kernel = void (*)(AttentionParams);

Kernel KernelOf(int32_t head_dim) {
  return head_dim == 64    ? MergeKernel<64, true>
         : head_dim == 128 ? MergeKernel<128, true>
         : head_dim == 256 ? MergeKernel<256, true>
         : head_dim < 128  ? MergeKernel<128, false>
                           : MergeKernel<256, false>;
}

}  // namespace

cudaError_t PrepareMerge(int32_t head_dim) {
  return Prepare(KernelOf(head_dim), kThreads, 0, nullptr);
}

cudaError_t MergePartials(const AttentionParams& params, int32_t num_blocks, cudaStream_t stream) {
  return Launch(KernelOf(params.page.head_dim), dim3(static_cast<unsigned>(num_blocks)),
                dim3(kThreads), 0, stream, params);
}

}  // namespace kvctl::cuda
