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

/*!
 * \brief Counts the partial results of an item, which this block has written.
 * \param flags [2] shared memory.
 * \return Bit i: they were the last of all results of the queries that begin with token i of the
 * item; this block sees the results of the others.
 */
__device__ inline uint64_t CountArrivals(const AttentionParams& params, const WorkItem& item,
                                         uint32_t* flags) {
  __threadfence();  // what this thread has written comes before the count
  __syncthreads();
  if (threadIdx.x < kMaxItemQueries) {
    const auto token = static_cast<int32_t>(threadIdx.x);
    const ItemRow* rows = RowsOf(params.plan, item);
    int32_t merge = -1;
    if (rows == nullptr) {
      if (token == 0) merge = item.merge;
    } else if (token < item.token_end && rows[token].token == 0) {
      merge = rows[token].merge;
    }
    bool last = false;
    if (merge >= 0) {
      int32_t* count =
          const_cast<int32_t*>(PlanPart<int32_t>(params.plan, params.plan->arrivals)) + merge;
      const MergeItem& all = PlanPart<MergeItem>(params.plan, params.plan->merges)[merge];
      last = atomicAdd(count, 1) + 1 == all.num_partials;
      if (last) *count = 0;  // for the next layer
    }
    const uint32_t bits = __ballot_sync(0xFFFFFFFFu, last);
    if (threadIdx.x % 32 == 0) flags[threadIdx.x / 32] = bits;
  }
  __syncthreads();
  const uint64_t last = flags[0] | static_cast<uint64_t>(flags[1]) << 32;
  if (last != 0) __threadfence();
  return last;
}

/*!
 * \brief Merges the partial results of those queries of an item of which this block has written the
 * last ones, into their outputs. All threads of a block.
 *
 * A warp per query. Lane i reads the scale of partial result i, so that those of 32 are read at
 * once; the sums come in vectors, their weights by shuffles. Sums are added in the order of the
 * keys, whichever block does it. kAnyHeadDim: the pages', a multiple of 8.
 */
template <int kHeadDim>
__device__ void MergeWhereLast(const AttentionParams& params, const WorkItem& item,
                               uint32_t* flags) {
  constexpr bool kKnown = kHeadDim != kAnyHeadDim;
  constexpr int kMost = kKnown ? kHeadDim : kMaxHeadDim;
  constexpr int kSize = kKnown && kHeadDim % 128 == 0 ? 4 : 2;  // floats of a vector
  constexpr int kVectors = (kMost + 32 * kSize - 1) / (32 * kSize);
  constexpr bool kExact = kKnown && kHeadDim % (32 * kSize) == 0;
  const int32_t head_dim = kKnown ? kHeadDim : params.page.head_dim;
  const uint64_t last = CountArrivals(params, item, flags);
  if (last == 0) return;
  const ItemRow* rows = RowsOf(params.plan, item);
  const int32_t lane = threadIdx.x % 32;
  const int32_t item_queries = (item.token_end - item.token_begin) * params.group;
  for (int32_t i = threadIdx.x / 32; i < item_queries; i += kWarps) {
    int32_t index = item.merge, query = i;  // within the queries that are merged
    if (rows != nullptr) {
      const ItemRow& row = rows[i / params.group];
      if ((last >> (i / params.group - row.token) & 1) == 0) continue;
      index = row.merge;
      query = row.token * params.group + i % params.group;
    }
    const MergeItem merge = PlanPart<MergeItem>(params.plan, params.plan->merges)[index];
    const int32_t queries = (merge.token_end - merge.token_begin) * params.group;
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
        PlanPart<PlanSequence>(params.plan, params.plan->sequences)[merge.sequence];
    const int64_t token = sequence.query_begin + merge.token_begin + query / params.group;
    const int32_t head = merge.kv_head * params.group + query % params.group;
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
