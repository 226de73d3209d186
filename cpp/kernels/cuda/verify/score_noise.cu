// RowSampler::SampleGumbel after every node at once: no node waits for the decision before.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/verify/verify_target.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVectors = kVocabBlock / kThreads / kVectorTokens;

/*! \brief Bounds of -log(u) / weight in float: most tokens are ruled out without a logarithm. */
struct Bounds {
  float low, high;
};

/*! \param exp of which the weight is the nearest integer, above 1/2. */
__device__ Bounds BoundScore(uint64_t bits, float exp) {
  // 1 - u <= -log(u) <= (1 - u) / u. Of u, the 32 highest bits; more than all roundings.
  constexpr float kLess = 1.f - 0x1p-20f, kMore = 1.f + 0x1p-20f, kUnit = 0x1p-32f;
  const auto high = static_cast<uint32_t>(bits >> 32);
  const auto rest = static_cast<float>(~high), u = static_cast<float>(high) * kUnit * kLess;
  const float least_weight = exp - 0.5f > 1.f ? exp - 0.5f : 1.f;
  return {rest * kUnit * kLess / (exp + 0.5f) * kLess,
          (rest + 1.f) * kUnit * kMore / (u * least_weight) * kMore};
}

class NoiseScorer : public SequenceTarget {
 public:
  using SequenceTarget::SequenceTarget;

  /*! \brief The least of a block of the vocabulary, in every thread. */
  __device__ Least Score(const TargetRow& target, uint32_t position, int32_t block) {
    const int32_t begin = block * kVocabBlock, end = min(begin + kVocabBlock, params_.vocab_size);
    const int32_t first = begin + static_cast<int32_t>(threadIdx.x) * kVectorTokens;
    const TokenSpread spread{first, kVectorTokens * kThreads, 1};
    const ExpGrid grid = MakeExpGrid(sequence_.scale, static_cast<float>(target.exponent));
    float exps[kVectors][kVectorTokens], low[kVectors][kVectorTokens];
    uint64_t bits[kVectors][kVectorTokens];
    LoadTokens(target.logits, sequence_.target_type, vectors_, spread, end, -INFINITY, exps);
    float least_high = INFINITY;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int j = 0; j < kVectorTokens; ++j) {
        if (j % 2 == 0) Draw(position, spread.at(v, j), &bits[v][j], &bits[v][j + 1]);
        exps[v][j] = Exp2Scaled(exps[v][j], grid);
        low[v][j] = INFINITY;
        if (!(exps[v][j] > 0.5f) || spread.at(v, j) >= end) continue;  // no weight
        const Bounds bounds = BoundScore(bits[v][j], exps[v][j]);
        low[v][j] = bounds.low;
        least_high = fminf(least_high, bounds.high);
      }
    }
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) {
      least_high = fminf(least_high, __shfl_xor_sync(kAllLanes, least_high, delta));
    }
    Least least;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int j = 0; j < kVectorTokens; ++j) {
        if (low[v][j] == INFINITY || low[v][j] > least_high) continue;
        const auto weight = static_cast<double>(ToFixed(exps[v][j]));
        least.Take(-ExactLog(OpenUniform(bits[v][j])) / weight, spread.at(v, j));
      }
    }
    return LeastOfBlock(least);
  }

 private:
  /*! \brief The random bits of two tokens, the first even. */
  __device__ void Draw(uint32_t position, int32_t x, uint64_t* even, uint64_t* odd) const {
    const auto words = Stream().Words(Purpose::kGumbel, position, static_cast<uint32_t>(x) / 2);
    *even = static_cast<uint64_t>(words[1]) << 32 | words[0];
    *odd = static_cast<uint64_t>(words[3]) << 32 | words[2];
  }
};

/*! \brief A block per (node, kVocabBlock of its tokens). */
__global__ void __launch_bounds__(kThreads) ScoreNoiseKernel(VerifyParams params) {
  KVCTL_DYNAMIC_SHARED(shared);
  WaitForPrevious();
  LetNextCome();
  const char* arena = reinterpret_cast<const char*>(params.plan);
  const auto& node = reinterpret_cast<const VerifyNode*>(arena + params.plan->nodes)[blockIdx.x];
  const auto& sequence =
      reinterpret_cast<const VerifySequence*>(arena + params.plan->sequences)[node.sequence];
  if (sequence.gumbel == 0 || sequence.greedy != 0) return;
  NoiseScorer scorer(params, sequence, reinterpret_cast<WalkShared*>(shared));
  bool irregular;
  const TargetRow target =
      scorer.ReadTarget(static_cast<int32_t>(blockIdx.x) - sequence.first_node, &irregular);
  if (irregular) return;  // the walk says so
  const uint32_t position = sequence.root_position + 1 + static_cast<uint32_t>(node.depth);
  const Least least = scorer.Score(target, position, static_cast<int32_t>(blockIdx.y));
  if (threadIdx.x != 0) return;
  params.scores[static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y] = least;
}

}  // namespace

cudaError_t ScoreNoise(const VerifyParams& params, cudaStream_t stream) {
  if (params.num_nodes == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((params.vocab_size + kVocabBlock - 1) / kVocabBlock);
  return LaunchOverlapping(params.overlaps, ScoreNoiseKernel,
                           dim3(static_cast<unsigned>(params.num_nodes), blocks), dim3(kThreads),
                           sizeof(WalkShared), stream, params);
}

}  // namespace kvctl::cuda
