// top-k, top-p and min-p: core/sampling/truncate.cc on a device. Prefixes are found without
// sorting, by sums over the bits of the exponentials; the sums are of integers, so they are the
// CPU's.
#include <cmath>

#include "core/sampling/cut.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/verify/reduce.cuh"
#include "kernels/cuda/verify/verify.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

/*! \brief Bits of an exponential that choose a bin. */
struct Level {
  int shift, width;
};
constexpr int kNumLevels = 3;
constexpr int kBins = 2048;  // of the widest
__device__ inline Level LevelOf(int i) {
  return i == 0 ? Level{20, 11} : i == 1 ? Level{9, 11} : Level{0, 9};
}

/*! \brief The tokens before a bin, and the bin; -1: none meets the goal. */
struct Reach {
  uint64_t mass;
  int64_t count;
  int32_t bin;
};

struct CutShared {
  uint64_t mass[kBins];
  uint32_t count[kBins];
  uint64_t warp_sums[kWarps];
  Reach reach;
  int32_t found;
};

/*! \brief The last of the tokens that are kept, in order of weight; and their mass. */
struct PrefixEnd {
  float exp;
  int32_t token;
  uint64_t mass;
};

/*! \brief FindCut for a block of threads, which all run the same steps. */
class RowCutter {
 public:
  __device__ RowCutter(float* logits, int32_t size, const ExpGrid& grid, CutShared* shared)
      : logits_(logits), size_(size), grid_(grid), shared_(*shared) {}

  __device__ Cut Find(const RowProcessing& processing) {
    Fill(0, 0);
    const uint64_t total = SumBins();
    const uint32_t largest = Largest();
    PrefixEnd end{0, size_, total};
    bool filled = true;
    if (processing.top_k > 0 && processing.top_k < size_) {
      end = Prefix({processing.top_k, static_cast<double>(total) * 2}, end, &filled);
    }
    if (processing.top_p < 1) {
      const PrefixGoal goal{static_cast<int64_t>(size_) + 1,
                            processing.top_p * static_cast<double>(end.mass)};
      const PrefixEnd top_p = Prefix(goal, {0, size_, total}, &filled);
      if (top_p.mass < end.mass) end = top_p;
    }
    Cut cut;
    cut.exp = end.exp;
    cut.token = end.token;
    cut.least = processing.min_p * static_cast<double>(ToFixed(FromBits(largest)));
    return cut;
  }

  __device__ float Exp(int32_t x) const { return Exp2Scaled(logits_[x], grid_); }

 private:
  __device__ static float FromBits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
  }

  /*! \brief Sums the weights of each bin of a level, over the tokens whose higher bits are these.
   */
  __device__ void Fill(int index, uint32_t higher) {
    const Level level = LevelOf(index);
    __syncthreads();  // the bins are read no more
    for (int32_t i = threadIdx.x; i < kBins; i += kThreads) {
      shared_.mass[i] = 0;
      shared_.count[i] = 0;
    }
    __syncthreads();
    for (int32_t x = threadIdx.x; x < size_; x += kThreads) {
      const float exp = Exp(x);
      const uint32_t bits = ExpBits(exp);
      if (!HasWeight(exp) || bits >> (level.shift + level.width) != higher) continue;
      const uint32_t bin = bits >> level.shift & ((1u << level.width) - 1);
      AddAtomically(ToFixed(exp), &shared_.mass[bin]);
      atomicAdd(&shared_.count[bin], 1u);
    }
    __syncthreads();
  }

  __device__ uint64_t SumBins() {
    uint64_t sum = 0;
    for (int32_t i = threadIdx.x; i < kBins; i += kThreads) sum += shared_.mass[i];
    sum = WarpSum(sum);
    if (threadIdx.x % 32 == 0) shared_.warp_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared_.warp_sums[w];
    __syncthreads();
    return sum;
  }

  /*! \brief The bits of the largest exponential that has a weight. */
  __device__ uint32_t Largest() {
    uint32_t largest = 0;
    for (int32_t x = threadIdx.x; x < size_; x += kThreads) {
      const float exp = Exp(x);
      if (HasWeight(exp) && ExpBits(exp) > largest) largest = ExpBits(exp);
    }
    for (int delta = 16; delta > 0; delta /= 2) {
      const uint32_t other = __shfl_xor_sync(kAllLanes, largest, delta);
      if (other > largest) largest = other;
    }
    if (threadIdx.x % 32 == 0) shared_.warp_sums[threadIdx.x / 32] = largest;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
      if (shared_.warp_sums[w] > largest) largest = static_cast<uint32_t>(shared_.warp_sums[w]);
    }
    __syncthreads();
    return largest;
  }

  /*! \brief The first bin from the highest on with which the goal is met, after what is before. */
  __device__ Reach FindBin(const PrefixGoal& goal, Reach before) {
    if (threadIdx.x < 32) {
      const auto lane = static_cast<int32_t>(threadIdx.x);
      before.bin = -1;
      for (int32_t top = kBins - 1; top >= 0; top -= 32) {
        const int32_t bin = top - lane;  // in descending order
        const uint64_t mass = shared_.mass[bin];
        const int64_t count = shared_.count[bin];
        const uint64_t mass_with = before.mass + WarpPrefix(mass);
        const int64_t count_with = before.count + WarpPrefix(count);
        int32_t first = count > 0 && goal.IsMetBy(count_with, mass_with) ? lane : 32;
        for (int delta = 16; delta > 0; delta /= 2) {
          first = min(first, __shfl_xor_sync(kAllLanes, first, delta));
        }
        if (first < 32) {
          before = {__shfl_sync(kAllLanes, mass_with - mass, first),
                    __shfl_sync(kAllLanes, count_with - count, first), top - first};
          break;
        }
        before.mass = __shfl_sync(kAllLanes, mass_with, 31);
        before.count = __shfl_sync(kAllLanes, count_with, 31);
      }
      if (lane == 0) shared_.reach = before;
    }
    __syncthreads();
    const Reach reach = shared_.reach;
    __syncthreads();
    return reach;
  }

  /*! \brief The shortest prefix that meets a goal; `all` if none does.
   * \param filled whether the bins are those of the first level. */
  __device__ PrefixEnd Prefix(const PrefixGoal& goal, const PrefixEnd& all, bool* filled) {
    Reach reach{0, 0, 0};
    uint32_t bits = 0;
    for (int i = 0; i < kNumLevels; ++i) {
      if (i > 0 || !*filled) Fill(i, bits);
      *filled = i == 0;
      reach = FindBin(goal, reach);
      if (reach.bin < 0) return all;  // on the first level
      bits = bits << LevelOf(i).width | static_cast<uint32_t>(reach.bin);
    }
    const float exp = FromBits(bits);
    const uint64_t weight = ToFixed(exp);
    const int64_t ties = shared_.count[reach.bin];
    int64_t least = 1, most = ties;  // how many of them the prefix has
    while (least < most) {
      const int64_t middle = (least + most) / 2;
      if (goal.IsMetBy(reach.count + middle, reach.mass + static_cast<uint64_t>(middle) * weight)) {
        most = middle;
      } else {
        least = middle + 1;
      }
    }
    const int32_t token = least == ties ? size_ : FindTie(exp, least - 1);
    return {exp, token, reach.mass + static_cast<uint64_t>(least) * weight};
  }

  /*! \brief The token with this exponential that follows `before` others. */
  __device__ int32_t FindTie(float exp, int64_t before) {
    const int32_t each = (size_ + kThreads - 1) / kThreads;
    const int32_t begin = min(static_cast<int32_t>(threadIdx.x) * each, size_);
    const int32_t end = min(begin + each, size_);
    int64_t ties = 0;
    for (int32_t x = begin; x < end; ++x) ties += Exp(x) == exp;
    int64_t earlier = WarpPrefix(ties);
    if (threadIdx.x % 32 == 31) shared_.warp_sums[threadIdx.x / 32] = earlier;
    __syncthreads();
    for (uint32_t w = 0; w < threadIdx.x / 32; ++w) {
      earlier += static_cast<int64_t>(shared_.warp_sums[w]);
    }
    earlier -= ties;
    if (before >= earlier && before < earlier + ties) {
      int64_t rest = before - earlier;
      int32_t x = begin;
      for (;; ++x) {
        if (Exp(x) == exp && rest-- == 0) break;
      }
      shared_.found = x;
    }
    __syncthreads();
    return shared_.found;
  }

  float* logits_;
  const int32_t size_;
  const ExpGrid grid_;
  CutShared& shared_;
};

/*! \brief A block per row: logits of removed tokens become -inf, and the sums of its blocks those
 * of what is left, on the grid of the row. */
__global__ void __launch_bounds__(kThreads) CutRowsKernel(VerifyParams params) {
  KVCTL_DYNAMIC_SHARED(shared);
  WaitForPrevious();
  LetNextCome();
  const char* arena = reinterpret_cast<const char*>(params.plan);
  const RowHeader& rows = params.plan->rows;
  const ProcessedRow row =
      reinterpret_cast<const ProcessedRow*>(arena + rows.processed)[blockIdx.x];
  if (row.cuts == 0) return;
  const RowProcessing& processing =
      reinterpret_cast<const RowProcessing*>(arena + rows.processing)[row.processing];
  const int32_t num_blocks = (params.vocab_size + kVocabBlock - 1) / kVocabBlock;
  BlockSum* sums = params.sums + static_cast<int64_t>(row.job) * num_blocks;
  float* logits = params.scratch + static_cast<int64_t>(row.scratch_row) * params.vocab_size;
  float max = -INFINITY;
  for (int32_t b = 0; b < num_blocks; ++b) max = fmaxf(max, sums[b].max);
  if (max == -INFINITY) return;  // the walk sees that no token is left
  const float exponent = ceilf(max * processing.scale);
  if (!(fabsf(exponent) < kMaxExponent)) {  // the tokens that share such a row: left to the CPU
    __syncthreads();
    if (threadIdx.x == 0) sums[0].exponent = INT32_MAX;
    return;
  }
  RowCutter cutter(logits, params.vocab_size, MakeExpGrid(processing.scale, exponent),
                   reinterpret_cast<CutShared*>(shared));
  const Cut cut = cutter.Find(processing);
  __syncthreads();
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  for (auto b = static_cast<int32_t>(threadIdx.x / 32); b < num_blocks; b += kWarps) {
    const int32_t end = min((b + 1) * kVocabBlock, params.vocab_size);
    uint64_t sum = 0;
    for (int32_t x = b * kVocabBlock + lane; x < end; x += 32) {
      const float exp = cutter.Exp(x);
      if (cut.keeps(exp, x)) {
        sum += ToFixed(exp);
      } else {
        logits[x] = -INFINITY;
      }
    }
    sum = WarpSum(sum);
    if (lane != 0) continue;
    sums[b].exponent = static_cast<int32_t>(exponent);
    sums[b].exp_sum = sum;
  }
}

}  // namespace

cudaError_t CutRows(const VerifyParams& params, cudaStream_t stream) {
  if (params.num_processed == 0) return cudaSuccess;
  return LaunchOverlapping(params.overlaps, CutRowsKernel,
                           dim3(static_cast<unsigned>(params.num_processed)), dim3(kThreads),
                           sizeof(CutShared), stream, params);
}

}  // namespace kvctl::cuda
