/*!
 * \file kernels/cuda/attention/attention_plain.cuh
 * \brief A query and the keys it sees, for kernels without tensor cores: a warp per query, a lane
 * per key.
 */
#ifndef KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_PLAIN_CUH_
#define KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_PLAIN_CUH_

#include <cstring>

#include "kernels/cuda/attention/attention_tile.cuh"
#include "kernels/cuda/device/elements.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace kvctl::cuda {

constexpr int kLanes = 32;
constexpr uint32_t kWholeWarp = 0xFFFFFFFFu;
/*! \brief Shared memory of a block: a query for each warp. */
constexpr size_t kPlainSharedBytes = sizeof(float) * kWarps * kMaxHeadDim;

/*! \brief Reads a query, and scores the keys of one step after another. Keys that are hidden are
 * not read. */
template <typename T>
class PlainQuery {
 public:
  /*! \brief \param q [kMaxHeadDim] shared memory of the warp. */
  __device__ PlainQuery(const AttentionParams& params, const WorkItem& item, int32_t query,
                        float* q)
      : params_(params),
        item_(item),
        index_(item.rows < 0 ? item.sequence : Row(params, item, query).sequence),
        sequence_(PlanPart<PlanSequence>(params.plan, params.plan->sequences)[index_]),
        pages_(static_cast<const T*>(params.pages)),
        table_(PlanPart<int32_t>(params.plan, sequence_.page_table)),
        q_(q),
        lane_(static_cast<int32_t>(threadIdx.x) % kLanes),
        query_(query),
        token_(item.rows < 0 ? item.token_begin + query / params.group
                             : Row(params, item, query).token),
        head_(item.kv_head * params.group + query % params.group) {
    if (params.head_pages != nullptr) {
      table_ =
          params.head_pages + params.head_pages[index_ * params.page.num_kv_heads + item.kv_head];
    }
    const auto* from =
        static_cast<const QueryOf<T>*>(item.at_sinks ? params.q_at_sinks : params.q) +
        row() * params.q_row_stride + static_cast<int64_t>(head_) * params.page.head_dim;
    __syncwarp();  // an earlier query is read no more
    for (int32_t d = lane_; d < params.page.head_dim; d += kLanes) q_[d] = ToFloat(from[d]);
    __syncwarp();
    if (params.alibi_slopes != nullptr) {
      slope_ = params.alibi_slopes[head_];
      const int32_t key = sequence_.kv_len - sequence_.num_query_tokens + token_;
      position_ = static_cast<float>(KeyPosition(params.plan, sequence_, key));
    }
  }

 protected:
  __device__ static const ItemRow& Row(const AttentionParams& params, const WorkItem& item,
                                       int32_t query) {
    return RowsOf(params.plan, item)[query / params.group];
  }
  __device__ int64_t row() const { return sequence_.query_begin + token_; }

  /*! \brief Whether this lane's key of a step is seen: then its offset in the pages, else -1. */
  __device__ int64_t Offset(const TileCursor<kLanes>& cursor) const {
    uint64_t word = ~uint64_t{0};
    if (cursor.words >= 0) {
      word = PlanPart<uint64_t>(params_.plan,
                                params_.plan->words)[cursor.words + token_ % kBlockQueries];
    }
    if ((cursor.Visible(word) >> lane_ & 1) == 0) return -1;
    const int32_t key = cursor.first_key + lane_;
    const int32_t page = table_[key / params_.page.page_size];
    if (page < 0) return -1;
    const int32_t slot = page * params_.page.page_size + key % params_.page.page_size;
    return SlotOffset(params_.page, slot, 0, item_.kv_head);
  }

  /*! \brief The score of a key, times log2 e. */
  __device__ float Score(int64_t offset, int32_t key) const {
    constexpr int kSize = 16 / sizeof(T);  // of 16 bytes
    const T* k = pages_ + offset;
    float dot = 0;
    for (int32_t d = 0; d < params_.page.head_dim; d += kSize) {
      const uint4 words = *reinterpret_cast<const uint4*>(k + d);
      T part[kSize];
      memcpy(part, &words, sizeof(words));
#pragma unroll
      for (int i = 0; i < kSize; ++i) dot += q_[d + i] * ToFloat(part[i]);
    }
    float distance = 0;
    if (params_.alibi_slopes != nullptr) {
      distance = static_cast<float>(KeyPosition(params_.plan, sequence_, key)) - position_;
    }
    return Shape(dot, params_.sm_scale * Factor(0), params_.soft_cap, slope_, distance);
  }

  /*! \brief What elements of K (part 0) or V (part 1) are multiplied by. */
  __device__ float Factor(int32_t part) const {
    if constexpr (sizeof(T) > 1) {
      return 1;
    } else {
      return ScaleOf(params_.float8, params_.page.num_kv_heads, part, item_.kv_head);
    }
  }

  const AttentionParams& params_;
  const WorkItem& item_;
  const int32_t index_;  // of the query's sequence
  const PlanSequence sequence_;
  const T* pages_;
  const int32_t* table_;  // page table
  float* q_;
  const int32_t lane_, query_, token_, head_;

 private:
  float slope_ = 0, position_ = 0;
};

/*! \brief Calls f(item, query, shared memory of the warp) for the queries of a warp, and end(item)
 * in all threads of the block after each item. */
template <typename F, typename E>
__device__ void ForQueries(const AttentionParams& params, unsigned char* shared, F f, E end) {
  const PlanClass work = ClassOf(params.plan, params.layer);
  const WorkItem* items = PlanPart<WorkItem>(params.plan, params.plan->items) + work.first_item;
  const auto* range = PlanPart<int32_t>(params.plan, params.plan->ranges) + work.first_range;
  const auto warp = static_cast<int32_t>(threadIdx.x) / kLanes;
  float* q = reinterpret_cast<float*>(shared) + warp * kMaxHeadDim;
  for (int32_t i = range[blockIdx.x]; i < range[blockIdx.x + 1]; ++i) {
    const WorkItem item = items[i];
    const int32_t queries = (item.token_end - item.token_begin) * params.group;
    for (int32_t query = warp; query < queries; query += kWarps) f(item, query, q);
    end(item);
  }
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_PLAIN_CUH_
