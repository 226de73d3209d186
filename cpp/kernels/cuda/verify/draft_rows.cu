// core/verify/draft.cc on a device: a block of threads for each row.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/verify/draft.cuh"
#include "kernels/cuda/verify/verify_target.cuh"

namespace kvctl::cuda {
namespace {

/*! \brief One row. T: of the distribution that is returned, from which tokens are drawn. */
template <typename T>
class RowDraft : public SequenceTarget {
 public:
  __device__ RowDraft(const DraftParams& params, const VerifySequence& sequence,
                      const DraftTarget& target, WalkShared* shared)
      : SequenceTarget(params.rows, sequence, shared),
        draft_(params),
        probs_(static_cast<T*>(target.probs)),
        target_(target),
        tokens_(params.tokens + static_cast<int64_t>(blockIdx.x) * params.num_tokens) {}

  __device__ void Run() {
    const TargetRow row = ReadTarget(0, &irregular_);
    if (irregular()) return;
    WriteDistribution(row);
    if (draft_.how == Drawn::kCoupled) {
      DrawCoupled(row);
    } else {
      Draw();
    }
  }

 private:
  /*! \brief The weights that tokens are drawn by: of the numbers that the caller receives. */
  __device__ uint64_t DraftWeight(int32_t x) const {
    return static_cast<uint64_t>(ToGrid(static_cast<double>(probs_[x])));
  }
  /*! \brief Whether one of the first n tokens drawn is this. */
  __device__ bool IsDrawn(int32_t n, int32_t token) const {
    for (int32_t i = 0; i < n; ++i) {
      if (tokens_[i] == token) return true;
    }
    return false;
  }
  __device__ void Put(int32_t i, int32_t token) {
    if (threadIdx.x == 0) tokens_[i] = token;
    __syncthreads();  // the next draw reads it
  }
  /*! \brief Tokens that a warp sums at a time. */
  static constexpr int32_t kPiece = 1024;
  /*! \brief A lane's share of the sum of weights. */
  template <typename F>
  __device__ uint64_t SumPiece(int32_t first, F weight) const {
    const int32_t end = min(first + kPiece, params_.vocab_size);
    uint64_t sum = 0;
#pragma unroll 4
    for (int32_t x = first + static_cast<int32_t>(threadIdx.x % 32); x < end; x += 32) {
      sum += weight(x);
    }
    return sum;
  }

  __device__ void WriteDistribution(const TargetRow& row) {
    SumBlocks(kPiece, [&](int32_t block, int32_t first) {
      const ExpTerms terms = Terms(row, block);
      return SumPiece(
          first, [&](int32_t x) { return static_cast<uint64_t>(TargetWeight(row, terms, x)); });
    });
    const auto total = static_cast<double>(SumOfBlocks());
    for (int32_t x = threadIdx.x; x < params_.vocab_size; x += static_cast<int32_t>(blockDim.x)) {
      const ExpTerms terms = Terms(row, x / kVocabBlock);
      probs_[x] = static_cast<T>(TargetWeight(row, terms, x) / total);
    }
    __syncthreads();
  }

  __device__ void DrawCoupled(const TargetRow& row) {
    for (int32_t i = 0; i < draft_.num_tokens; ++i) {
      int32_t token;
      if (row.greedy >= 0) {
        token = i == 0 ? row.greedy : INT32_MAX;
      } else {
        token = LeastNoise(row, sequence_.root_position + target_.depth, i);
      }
      Put(i, token == INT32_MAX ? -1 : token);
    }
  }

  /*! \brief RowSampler::SampleGumbel, of tokens that are not among the first `removed` drawn;
   * INT32_MAX if none is left. */
  __device__ int32_t LeastNoise(const TargetRow& target, uint32_t position, int32_t removed) {
    const RandomStream stream = Stream();
    const ExpGrid grid = MakeExpGrid(sequence_.scale, static_cast<float>(target.exponent));
    Least least;
    for (int32_t x = threadIdx.x; x < params_.vocab_size; x += static_cast<int32_t>(blockDim.x)) {
      const uint64_t weight = ToFixed(Exp2Scaled(Logit(target, x), grid));
      if (weight == 0 || IsDrawn(removed, x)) continue;
      const auto words = stream.Words(Purpose::kGumbel, position, static_cast<uint32_t>(x) / 2);
      const int half = (x & 1) * 2;
      const uint64_t bits = (static_cast<uint64_t>(words[half + 1]) << 32) | words[half];
      least.Take(-ExactLog(OpenUniform(bits)) / static_cast<double>(weight), x);
    }
    return LeastOfBlock(least).token;
  }

  __device__ void Draw() {
    SumBlocks(kPiece, [&](int32_t, int32_t first) {
      return SumPiece(first, [&](int32_t x) { return DraftWeight(x); });
    });
    for (int32_t i = 0; i < draft_.num_tokens; ++i) {
      const uint64_t total = SumOfBlocks();
      int32_t token = -1;
      const int32_t removed = draft_.how == Drawn::kIndependent ? 0 : i;
      if (total > 0) {
        token = draft_.how == Drawn::kDeterministic
                    ? MostLikely(removed)
                    : DrawOne(total, removed, target_.first_node + static_cast<uint32_t>(i));
      }
      Put(i, token);
      if (token < 0 || draft_.how == Drawn::kIndependent) continue;
      if (threadIdx.x == 0) shared_->block_sums[token / kVocabBlock] -= DraftWeight(token);
      __syncthreads();
    }
  }

  __device__ int32_t MostLikely(int32_t removed) {
    Least least;
    for (int32_t x = threadIdx.x; x < params_.vocab_size; x += static_cast<int32_t>(blockDim.x)) {
      if (!IsDrawn(removed, x)) least.Take(-static_cast<double>(DraftWeight(x)), x);
    }
    return LeastOfBlock(least).token;
  }

  __device__ int32_t DrawOne(uint64_t total, int32_t removed, uint32_t node) {
    uint64_t rest = Below(total, Stream().Bits(Purpose::kDraft, sequence_.root_position, node));
    const int32_t block = FindBlock([&](int32_t b) { return shared_->block_sums[b]; }, &rest);
    if (block < 0) {
      irregular_ = true;
      return -1;
    }
    return FindIn(block, rest, [&](int32_t first, int32_t end, auto& weights) {
#pragma unroll
      for (int i = 0; i < kFindVectors * kVectorTokens; ++i) {
        const int32_t x = first + i;
        weights[i / kVectorTokens][i % kVectorTokens] =
            x < end && !IsDrawn(removed, x) ? DraftWeight(x) : 0;
      }
    });
  }

  const DraftParams& draft_;
  T* probs_;
  const DraftTarget& target_;
  int32_t* tokens_;
};

template <typename T>
__global__ void __launch_bounds__(kMaxWalkThreads) DraftRowsKernel(DraftParams params) {
  KVCTL_DYNAMIC_SHARED(shared);
  WaitForPrevious();
  const VerifySequence& sequence = reinterpret_cast<const VerifySequence*>(
      reinterpret_cast<const char*>(params.rows.plan) + params.rows.plan->sequences)[blockIdx.x];
  RowDraft<T> draft(params, sequence, params.targets[blockIdx.x],
                    reinterpret_cast<WalkShared*>(shared));
  draft.Run();
  if (threadIdx.x != 0) return;
  params.rows.outcomes[blockIdx.x] = {0, 0, draft.irregular() ? 1 : 0, 0};
}

}  // namespace

cudaError_t DraftRows(const DraftParams& params, int32_t num_threads, cudaStream_t stream) {
  if (params.rows.num_sequences == 0) return cudaSuccess;
  return LaunchOverlapping(
      params.rows.overlaps,
      params.probs_type == DType::kFloat64 ? DraftRowsKernel<double> : DraftRowsKernel<float>,
      dim3(static_cast<unsigned>(params.rows.num_sequences)),
      dim3(static_cast<unsigned>(num_threads)), sizeof(WalkShared), stream, params);
}

}  // namespace kvctl::cuda
