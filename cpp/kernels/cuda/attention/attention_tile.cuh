/*!
 * \file kernels/cuda/attention/attention_tile.cuh
 * \brief The parts of the attention kernel: shapes, finding keys in pages, scores, softmax.
 */
#ifndef KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_TILE_CUH_
#define KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_TILE_CUH_

#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/device/warp_ops.cuh"

namespace kvctl::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kMaxHeadDim = 256;
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

/*! \brief The most stages: K and V of so many steps are in shared memory, or on their way there. */
constexpr int kMaxStages = 3;

/*! \brief How a block covers a tile of keys: kQueryWarps x kKeyWarps warps. kSize: bytes of an
 * element of the pages, 2 or 1. */
template <int kHeadDim, int kQueryWarps, int kSize = 2>
struct TileShape {
  static constexpr int kKeyWarps = kWarps / kQueryWarps;
  static constexpr int kQueries = 16 * kQueryWarps;
  /*! \brief Keys of a step: a tile of the mask, or a part of one. A warp needs 16; fewer in a step
   * leave room for more stages and more blocks. */
  static constexpr int kWarpKeys =
      (kQueryWarps == 4 || (kQueryWarps == 2 && kSize == 1)) && kHeadDim <= 128 ? 32 : 16;
  static constexpr int kKeys = kWarpKeys * kKeyWarps;
  static constexpr int kSteps = kTileKeys / kKeys;
  /*! \brief Elements from one row to the next: 16 bytes of padding spread the rows of a tile over
   * the banks. */
  static constexpr int kStride = kHeadDim + 8;
  static constexpr int kPageStride = kHeadDim + 16 / kSize;
  /*! \brief Floats from one query's results to the next: the rows of a warp in other banks. */
  static constexpr int kSumStride = kHeadDim + 8;
  static constexpr int kQueryBytes = kQueries * kStride * 2;
  static constexpr int kStageBytes = 2 * kKeys * kPageStride * kSize;  // K and V
  /*! \brief Steps whose addresses and positions are kept: those in the stages and one more. */
  static constexpr int kRing = kMaxStages + 1;
  static constexpr int kRingBytes = kRing * kKeys * (8 + 4);
  /*! \brief CountArrivals' flags, the first in shared memory of every shape: a thread may read it
   * while another already loads the queries of the next item, which may be of another shape. */
  static constexpr int kFlagBytes = 16;
  static constexpr int SharedBytes(int stages) {
    return kFlagBytes + kQueryBytes + kRingBytes + stages * kStageBytes;
  }
};

/*! \brief Dynamic shared memory of a block. */
template <int kHeadDim, int kQueryWarps, int kSize>
constexpr int SharedBytes(int stages) {
  const int bytes = TileShape<kHeadDim, kQueryWarps, kSize>::SharedBytes(stages);
  if (kQueryWarps < 4) return bytes;
  const int small = TileShape<kHeadDim, 2, kSize>::SharedBytes(kHeadDim > 128 ? 2 : stages);
  return bytes > small ? bytes : small;
}

template <typename T>
__device__ inline const T* PlanPart(const PlanHeader* plan, int32_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(plan) + offset);
}

/*! \brief The tokens of an item of several sequences; nullptr if it has those of one. */
__device__ inline const ItemRow* RowsOf(const PlanHeader* plan, const WorkItem& item) {
  return item.rows < 0 ? nullptr : PlanPart<ItemRow>(plan, plan->rows) + item.rows;
}

/*! \brief Where the partial result of an item's query goes. */
__device__ inline int32_t PartialOf(const PlanHeader* plan, const WorkItem& item, int32_t group,
                                    int32_t query) {
  const ItemRow* rows = RowsOf(plan, item);
  if (rows == nullptr) return item.partial + query;
  const ItemRow& row = rows[query / group];
  return row.partial + item.partial * row.piece_stride + query % group;
}

__device__ inline PlanClass ClassOf(const PlanHeader* plan, int32_t layer) {
  return PlanPart<PlanClass>(plan,
                             plan->classes)[PlanPart<int32_t>(plan, plan->layer_classes)[layer]];
}

__device__ inline int32_t KeyPosition(const PlanHeader* plan, const PlanSequence& sequence,
                                      int32_t key) {
  const int32_t pending = key - sequence.num_committed;
  if (pending < 0) {
    return sequence.committed_positions < 0
               ? key
               : PlanPart<int32_t>(plan, sequence.committed_positions)[key];
  }
  return sequence.next_position +
         (sequence.depths < 0 ? pending : PlanPart<int32_t>(plan, sequence.depths)[pending]);
}

/*! \brief Walks the tiles of a work item in steps of kKeys keys. */
template <int kKeys>
struct TileCursor {
  int32_t first_key;  // of the step
  int32_t words;      // first word of the block's queries, or MaskSpan::kAllQueries
  uint64_t keys;      // keys of the step that the span covers, from bit 0
  uint64_t any;       // keys that some query of the block sees

  __device__ TileCursor(const PlanHeader* plan, const WorkItem& item)
      : span_(PlanPart<PlanSpan>(plan, plan->spans) + item.span_begin),
        tile_(item.tile_begin),
        tile_end_(item.tile_end) {}

  /*! \brief Moves to the first step, then to the next. Returns false after the last. */
  __device__ bool Next() {
    step_ = step_ < 0 || step_ == kTileKeys / kKeys - 1 ? 0 : step_ + 1;
    if (step_ == 0 && started_) ++tile_;
    started_ = true;
    if (tile_ >= tile_end_) return false;
    while (tile_ - span_->tiles_before >= Tiles()) ++span_;
    const int32_t tile_key = (span_->begin / kTileKeys + tile_ - span_->tiles_before) * kTileKeys;
    first_key = tile_key + step_ * kKeys;
    words = span_->words;
    keys = Below(span_->end - first_key) & ~Below(span_->begin - first_key);
    any = keys & span_->any >> step_ * kKeys;
    return true;
  }
  /*! \brief Whether all queries of the block see all keys of the step. */
  __device__ bool ShowsAll() const {
    return words == MaskSpan::kAllQueries && keys == Below(kKeys);
  }
  /*! \brief The keys of this step that a query of the block sees, from its word. */
  __device__ uint64_t Visible(uint64_t word) const { return keys & word >> step_ * kKeys; }

 private:
  __device__ int32_t Tiles() const {
    return (span_->end + kTileKeys - 1) / kTileKeys - span_->begin / kTileKeys;
  }
  __device__ static uint64_t Below(int32_t n) {
    constexpr uint64_t kAll = kKeys == 64 ? ~uint64_t{0} : (uint64_t{1} << kKeys % 64) - 1;
    return n <= 0 ? 0 : n >= kKeys ? kAll : (uint64_t{1} << n) - 1;
  }

  const PlanSpan* span_;
  int32_t tile_, tile_end_;
  int32_t step_ = -1;
  bool started_ = false;
};

/*! \brief Scores of a query times log2 e: soft cap, ALiBi. */
__device__ inline float Shape(float dot, float sm_scale, float soft_cap, float slope,
                              float distance) {
  float score = dot * sm_scale;
  if (soft_cap > 0) {
    const float x = score / soft_cap;
    const float e = Exp2(-2 * kLog2E * fabsf(x));
    score = soft_cap * copysignf((1 - e) / (1 + e), x);
  }
  return (score + slope * distance) * kLog2E;
}

/*! \brief 2^(x - m), 0 where x is -inf. */
__device__ inline float Weight(float x, float m) { return x == -INFINITY ? 0.f : Exp2(x - m); }

/*! \brief The total of a query's results, with its sink, as output: factor for the sums, and lse.
 */
struct QueryResult {
  float factor, lse;
  __device__ QueryResult(float m, float l, const float* sinks, int32_t head) {
    const bool sees = m != -INFINITY;
    float scale = 1.f;
    if (sinks != nullptr) {
      const float sink = sinks[head] * kLog2E;
      const float largest = fmaxf(m, sink);
      scale = Weight(m, largest);
      l = (sees ? l * scale : 0.f) + Weight(sink, largest);
      m = largest;
    }
    lse = m == -INFINITY ? m : (m + log2f(l)) * kLn2;
    factor = sees ? scale / l : 0.f;
  }
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_TILE_CUH_
