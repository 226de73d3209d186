/*!
 * \file kernels/cuda/attention/attention_merge.cuh
 * \brief Merging the partial results of work items: by the block that writes the last of them, so
 * that no other launch is needed, and always in the same order.
 */
#ifndef KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_MERGE_CUH_
#define KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_MERGE_CUH_

#include <cstring>

#include "kernels/cuda/attention/attention_tile.cuh"
#include "kernels/cuda/device/elements.cuh"

namespace kvctl::cuda {

constexpr int kAnyHeadDim = 0;

template <int kSize>
struct alignas(4 * kSize) Floats {
  float at[kSize];
};

/*! \brief Loads 8 or 16 bytes that another block of the kernel may have written. */
template <typename T>
__device__ T LoadFromL2(const float* from) {
  static_assert(sizeof(T) == 8 || sizeof(T) == 16, "one load");
  T value;
  if constexpr (sizeof(T) == 16) {
    const uint4 words = __ldcg(reinterpret_cast<const uint4*>(from));
    memcpy(&value, &words, sizeof(T));
  } else {
    const float2 words = __ldcg(reinterpret_cast<const float2*>(from));
    memcpy(&value, &words, sizeof(T));
  }
  return value;
}

/*! \brief Two adjacent elements of an output, the index of the first even. */
__device__ inline void StorePair(float first, float second, const HeadRows& out, int64_t index) {
  const uintptr_t base = reinterpret_cast<uintptr_t>(out.data);
  const bool halves = out.dtype == DType::kFloat16;
  if (out.dtype == DType::kFloat32 || base % 4 != 0 || out.row_stride % 2 != 0) {
    StoreElement(first, out.data, out.dtype, index);
    StoreElement(second, out.data, out.dtype, index + 1);
  } else {
    reinterpret_cast<uint32_t*>(out.data)[index / 2] =
        halves ? Pack<Half>(first, second) : Pack<Bfloat>(first, second);
  }
}

__device__ inline const MergeItem& MergeOf(const AttentionParams& params, const WorkItem& item) {
  return PlanPart<MergeItem>(params.plan, params.plan->merges)[item.merge];
}

/*!
 * \brief Whether this block, which has written the partial results of an item, is the last of those
 * with results of the same queries: it sees those of the others.
 * \param flag Shared memory.
 */
__device__ inline bool LastOf(const AttentionParams& params, const WorkItem& item, int32_t* flag) {
  __threadfence();  // what this thread has written comes before the count
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* count =
        const_cast<int32_t*>(PlanPart<int32_t>(params.plan, params.plan->arrivals)) + item.merge;
    const bool last = atomicAdd(count, 1) + 1 == MergeOf(params, item).num_partials;
    if (last) *count = 0;  // for the next layer
    *flag = last;
  }
  __syncthreads();
  const bool last = *flag != 0;
  if (last) __threadfence();
  return last;
}

/*!
 * \brief Merges the partial results of an item's queries into their outputs. All threads of a
 * block.
 *
 * A warp per query. Lane i reads the scale of partial result i, so that those of 32 are read at
 * once; the sums come in vectors, their weights by shuffles. Sums are added in the order of the
 * keys, whichever block does it. kAnyHeadDim: the pages', a multiple of 8.
 */
template <int kHeadDim>
__device__ void MergePartials(const AttentionParams& params, const WorkItem& item) {
  constexpr bool kKnown = kHeadDim != kAnyHeadDim;
  constexpr int kMost = kKnown ? kHeadDim : kMaxHeadDim;
  constexpr int kSize = kKnown && kHeadDim % 128 == 0 ? 4 : 2;  // floats of a vector
  constexpr int kVectors = (kMost + 32 * kSize - 1) / (32 * kSize);
  constexpr bool kExact = kKnown && kHeadDim % (32 * kSize) == 0;
  const int32_t head_dim = kKnown ? kHeadDim : params.page.head_dim;
  const MergeItem merge = MergeOf(params, item);
  const int32_t lane = threadIdx.x % 32;
  const int32_t queries = (item.token_end - item.token_begin) * params.group;
  for (int32_t query = threadIdx.x / 32; query < queries; query += kWarps) {
    const float2* scales = params.partials.scale + merge.partial + query;
    const float* sums = params.partials.sums +
                        static_cast<int64_t>(merge.partial + query) * head_dim + lane * kSize;
    float m = -INFINITY, l = 0;
    for (int32_t i = lane; i < merge.num_partials; i += 32) {
      m = fmaxf(m, __ldcg(scales + static_cast<int64_t>(i) * queries).x);
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
        const float2 scale = __ldcg(scales + static_cast<int64_t>(first + lane) * queries);
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
          const Floats<kSize> part = LoadFromL2<Floats<kSize>>(from + v * 32 * kSize);
#pragma unroll
          for (int j = 0; j < kSize; ++j) total[v].at[j] += part.at[j] * w;
        }
      }
    }
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) l += __shfl_xor_sync(0xFFFFFFFFu, l, delta);
    const PlanSequence& sequence =
        PlanPart<PlanSequence>(params.plan, params.plan->sequences)[item.sequence];
    const int64_t token = sequence.query_begin + item.token_begin + query / params.group;
    const int32_t head = item.kv_head * params.group + query % params.group;
    const QueryResult result(m, l, params.sinks, head);
    const int64_t out = token * params.out.row_stride + static_cast<int64_t>(head) * head_dim;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (!kExact && (v * 32 + lane) * kSize >= head_dim) continue;
#pragma unroll
      for (int j = 0; j < kSize; j += 2) {
        StorePair(total[v].at[j] * result.factor, total[v].at[j + 1] * result.factor, params.out,
                  out + (v * 32 + lane) * kSize + j);
      }
    }
    if (lane == 0 && params.lse != nullptr) {
      params.lse[token * params.num_qo_heads + head] = result.lse;
    }
  }
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_MERGE_CUH_
