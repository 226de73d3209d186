/*!
 * \file kernels/cuda/verify/walk/verify_distribution.cuh
 * \brief The distributions that one sequence's nodes were drawn from, and the residuals of its
 * target's: TreeVerifier and Residual of core.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_WALK_VERIFY_DISTRIBUTION_CUH_
#define KVCTL_KERNELS_CUDA_VERIFY_WALK_VERIFY_DISTRIBUTION_CUH_

#include "kernels/cuda/verify/walk/residual_weights.cuh"

namespace kvctl::cuda {

/*! \brief DraftDistribution of core/verify/tree_verifier.h. */
struct ChildDistribution {
  bool one_hot;
  int32_t token;
  double weight, total;
  __device__ double prob() const { return weight / total; }
};

class SequenceDistributions : public SequenceWeights {
 public:
  using SequenceWeights::SequenceWeights;

  /*! \brief TreeVerifier::Draft: the distribution a node was drawn from. */
  __device__ ChildDistribution Draft(int32_t child) {
    const NodeFacts& facts = this->facts(child);
    irregular_ |= facts.draft_irregular != 0;
    return {nodes_[child].drawn == kDrawnDeterministic, nodes_[child].token, facts.draft_weight,
            facts.draft_total};
  }

  /*! \brief RowSampler::Sample after a node, with the noise of the token's position. */
  __device__ int32_t Sample(int32_t v) {
    const TargetRow& target = Target(v);
    if (irregular_) return 0;
    if (sequence_.gumbel == 0) {
      const uint32_t position =
          sequence_.root_position + 1 + static_cast<uint32_t>(nodes_[v].depth);
      return SampleToken(target, Stream().Bits(Purpose::kToken, position, 0));
    }
    if (target.greedy >= 0) return target.greedy;
    const TokenScore* scores =
        params_.scores + static_cast<int64_t>(sequence_.first_node + v) * num_blocks_;
    Least least;
    for (auto b = static_cast<int32_t>(threadIdx.x % 32); b < num_blocks_; b += 32) {
      least.Take(scores[b].score, scores[b].token);
    }
    return LeastOfWarp(least).token;
  }

  /*! \brief Residual::prob. */
  __device__ KVCTL_NOINLINE double ResidualProb(const LevelState& level, const TargetRow& target,
                                                int32_t token) const {
    return Weight(level, target, token) / level.total;
  }

  /*! \brief Residual::Subtract. */
  __device__ KVCTL_NOINLINE double Subtract(double a, const ChildDistribution& distribution,
                                            int32_t child, LevelState* level,
                                            const TargetRow& target) {
    const double before = level->total;
    LevelState out = *level;
    out.total = distribution.one_hot ? before - Weight(*level, target, distribution.token) : 0;
    PutStep(&out, StepOf(a, distribution, child, *level));
    if (!(out.total >= kSureMass)) {
      out.total = static_cast<double>(SumResidual(out, target));
      if (!(out.total > 0)) return 0;
    }
    *level = out;
    return distribution.one_hot ? a * (out.total / before) : out.total / kProbScale;
  }

  /*! \brief Residual::SampleToken. */
  __device__ KVCTL_NOINLINE int32_t SampleResidual(const LevelState& level, const TargetRow& target,
                                                   uint64_t bits) {
    const bool summed = sums_node_ == level.node && sums_steps_ == level.num_steps;
    uint64_t rest = Below(summed ? sums_total_ : SumResidual(level, target), bits);
    const int32_t block = FindBlock([&](int32_t b) { return shared_->block_sums[b]; }, &rest);
    if (block < 0) {
      irregular_ = true;
      return 0;
    }
    return FindIn(block, rest, [&](int32_t first, int32_t end, auto& fixed) {
      double weights[kFindVectors][kVectorTokens];
      Weights(level, target, block, AdjacentTokens(first), end, weights);
#pragma unroll
      for (int v = 0; v < kFindVectors; ++v) {
#pragma unroll
        for (int j = 0; j < kVectorTokens; ++j) {
          fixed[v][j] = static_cast<uint64_t>(weights[v][j]);
        }
      }
    });
  }

  __device__ bool Accept(double probability, int32_t v) const {
    return Uniform(Stream().Bits(Purpose::kAccept, sequence_.root_position,
                                 static_cast<uint32_t>(v))) < probability;
  }
  __device__ uint64_t ResidualBits(int32_t v) const {
    return Stream().Bits(Purpose::kResidual, sequence_.root_position, static_cast<uint32_t>(v));
  }

 private:
  __device__ DistributionStep StepOf(double a, const ChildDistribution& distribution, int32_t child,
                                     const LevelState& level) const {
    const int64_t width = int64_t{params_.vocab_size} * (sequence_.draft_f64 != 0 ? 8 : 4);
    const void* row = distribution.one_hot
                          ? nullptr
                          : static_cast<const char*>(sequence_.draft) + DraftRow(child) * width;
    return {a,   level.total, a * kProbScale / level.total, kProbScale / distribution.total,
            row, child,       Excludes(child) ? 1 : 0};
  }

  /*! \brief Appends a step to those of a level. Another level of the walk may overwrite it. */
  __device__ void PutStep(LevelState* level, const DistributionStep& step) {
    if (sums_node_ == level->node) sums_node_ = -1;  // they may be of a step that this one replaces
    __syncthreads();
    if (threadIdx.x == 0) steps_[nodes_[level->node].first_step + level->num_steps] = step;
    __syncthreads();
    ++level->num_steps;
  }

  /*! \brief The sum of the residual over the vocabulary; shared memory receives the sum of each
   * block. */
  __device__ KVCTL_NOINLINE uint64_t SumResidual(const LevelState& level, const TargetRow& target) {
    const bool in_floats = level.num_steps == 1 && StartsInFloats(level, target);
    SumBlocks(kSumTokens, [&](int32_t block, int32_t first) {
      const TokenSpread spread =
          ShareTokens(first, static_cast<int32_t>(threadIdx.x % 32), 32, all_vectors_);
      if (in_floats) return SumFirstRest(Steps(level)[0], target, block, spread);
      uint64_t sum = 0;
#pragma unroll 1
      for (int v = 0; v < kSumVectors; v += kFindVectors) {  // all at once would spill registers
        const TokenSpread part{spread.at(v, 0), spread.stride, spread.step};
        double weights[kFindVectors][kVectorTokens];
        Weights(level, target, block, part, params_.vocab_size, weights);
        ForTokens<kFindVectors>([&](int u, int j) { sum += static_cast<uint64_t>(weights[u][j]); });
      }
      return sum;
    });
    sums_node_ = level.node;
    sums_steps_ = level.num_steps;
    sums_total_ = SumOfBlocks();
    return sums_total_;
  }

  /*! \brief Whose sums the shared memory holds: a residual is often sampled right after it was
   * summed. */
  int32_t sums_node_ = -1, sums_steps_ = 0;
  uint64_t sums_total_ = 0;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_WALK_VERIFY_DISTRIBUTION_CUH_
