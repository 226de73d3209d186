/*!
 * \file kernels/cuda/attention/attention_tile.cuh
 * \brief The parts of the attention kernel: shapes, finding columns in pages, scores, softmax.
 */
#ifndef KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_TILE_CUH_
#define KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_TILE_CUH_

#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/device/warp_ops.cuh"

namespace kvctl::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

/*! \brief How a block works on a tile of columns: kRowWarps x kColumnWarps warps. */
template <int kHeadDim, int kRowWarps>
struct TileShape {
  static constexpr int kColumnWarps = kWarps / kRowWarps;
  static constexpr int kRows = 16 * kRowWarps;
  /*! \brief Columns in shared memory at a time: a tile of the mask, or half of one. */
  static constexpr int kColumns = kHeadDim > 128 && kRowWarps > 1 ? 32 : 64;
  static constexpr int kSteps = kTileColumns / kColumns;
  static constexpr int kWarpColumns = kColumns / kColumnWarps;
  /*! \brief Elements from row to row: 16 bytes of padding spread the rows of a tile over the banks.
   */
  static constexpr int kStride = kHeadDim + 8;
  static constexpr int kQueryBytes = kRows * kStride * 2;
  static constexpr int kStageBytes = 2 * kColumns * kStride * 2;  // K and V
  static constexpr int kTileBytes = kQueryBytes + 2 * kStageBytes;
  static constexpr int kSharedBytes = kTileBytes + 2 * kColumns * (8 + 4);
};

template <typename T>
__device__ inline const T* PlanPart(const PlanHeader* plan, int32_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(plan) + offset);
}

__device__ inline int32_t ColumnPosition(const PlanHeader* plan, const PlanSequence& sequence,
                                         int32_t column) {
  const int32_t pending = column - sequence.num_committed;
  if (pending < 0) {
    return sequence.committed_positions < 0
               ? column
               : PlanPart<int32_t>(plan, sequence.committed_positions)[column];
  }
  return sequence.next_position +
         (sequence.depths < 0 ? pending : PlanPart<int32_t>(plan, sequence.depths)[pending]);
}

/*! \brief Walks the tiles of a work item in steps of kColumns columns. */
template <int kColumns>
struct TileCursor {
  int32_t first_column;  // of the step
  int32_t words;         // first word of the block's rows, or MaskSpan::kAllRows
  uint64_t columns;      // of the step, from bit 0: those that the span covers
  uint64_t any;          // those that some row of the block sees

  __device__ TileCursor(const PlanHeader* plan, const WorkItem& item)
      : span_(PlanPart<PlanSpan>(plan, plan->spans) + item.span_begin),
        tile_(item.tile_begin),
        tile_end_(item.tile_end) {}

  /*! \brief Moves to the first step, then to the next; false behind the last. */
  __device__ bool Next() {
    step_ = step_ < 0 || step_ == kTileColumns / kColumns - 1 ? 0 : step_ + 1;
    if (step_ == 0 && started_) ++tile_;
    started_ = true;
    if (tile_ >= tile_end_) return false;
    while (tile_ - span_->tiles_before >= Tiles()) ++span_;
    const int32_t tile_column =
        (span_->begin / kTileColumns + tile_ - span_->tiles_before) * kTileColumns;
    first_column = tile_column + step_ * kColumns;
    words = span_->words;
    columns = Below(span_->end - first_column) & ~Below(span_->begin - first_column);
    any = columns & span_->any >> step_ * kColumns;
    return true;
  }
  /*! \brief The columns of this step that a row of the block sees, from its word. */
  __device__ uint64_t Visible(uint64_t word) const { return columns & word >> step_ * kColumns; }

 private:
  __device__ int32_t Tiles() const {
    return (span_->end + kTileColumns - 1) / kTileColumns - span_->begin / kTileColumns;
  }
  __device__ static uint64_t Below(int32_t n) {
    constexpr uint64_t kAll = kColumns == 64 ? ~uint64_t{0} : (uint64_t{1} << kColumns % 64) - 1;
    return n <= 0 ? 0 : n >= kColumns ? kAll : (uint64_t{1} << n) - 1;
  }

  const PlanSpan* span_;
  int32_t tile_, tile_end_;
  int32_t step_ = -1;
  bool started_ = false;
};

/*! \brief Scores of a row times log2 e: soft cap, ALiBi. */
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

/*! \brief The total of a row's results, with its sink, as output: factor for the sums, and lse. */
struct RowResult {
  float factor, lse;
  __device__ RowResult(float m, float l, const float* sinks, int32_t head) {
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
