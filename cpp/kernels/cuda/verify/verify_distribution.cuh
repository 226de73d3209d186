/*!
 * \file kernels/cuda/verify/verify_distribution.cuh
 * \brief The distributions that one sequence's nodes were drawn from, and the residuals of its
 * target's: TreeVerifier and Residual of core.
 *
 * The weights of a distribution are recomputed from the logits when needed: exponentials on the
 * row's grid, then the subtractions of rejected siblings.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_VERIFY_DISTRIBUTION_CUH_
#define KVCTL_KERNELS_CUDA_VERIFY_VERIFY_DISTRIBUTION_CUH_

#include "kernels/cuda/verify/verify_target.cuh"

namespace kvctl::cuda {

/*! \brief Drawn, as core/verify/tree_verifier.h numbers it. */
constexpr int32_t kDrawnDeterministic = 0, kDrawnWithoutReplacement = 2;

/*! \brief DraftDistribution of core/verify/tree_verifier.h. */
struct ChildDistribution {
  bool one_hot;
  int32_t token;
  double weight, total;
  __device__ double prob() const { return weight / total; }
};

class SequenceDistributions : public SequenceTarget {
 public:
  __device__ SequenceDistributions(const VerifyParams& params, const VerifySequence& sequence,
                                   WalkShared* shared)
      : SequenceTarget(params, sequence, shared), steps_(params.steps + sequence.first_node) {}

  /*! \brief TreeVerifier::Draft: the distribution a node was drawn from. */
  __device__ KVCTL_NOINLINE ChildDistribution Draft(int32_t child) {
    const VerifyNode& node = nodes_[child];
    if (node.drawn == kDrawnDeterministic) return {true, node.token, 1, 1};
    const int32_t row = DraftRow(child);
    const BlockSum* sums =
        params_.sums + static_cast<int64_t>(sequence_.draft_rows + row) * num_blocks_;
    double total = 0;
    for (int32_t b = 0; b < num_blocks_; ++b) total += sums[b].distribution_sum;
    if (!(fabs(total / kProbScale - 1) <= 1e-3)) irregular_ = true;
    ChildDistribution distribution{false, node.token, DraftWeight(row, node.token), total};
    if (Excludes(child)) {
      for (int32_t s = nodes_[node.parent].first_child; s != child; s = nodes_[s].next_sibling) {
        if (Excluded(s, nodes_[s].token)) continue;  // removed by an earlier sibling
        distribution.total -= DraftWeight(row, nodes_[s].token);
      }
      if (Excluded(child, node.token)) irregular_ = true;
    }
    if (!(distribution.weight > 0)) irregular_ = true;
    return distribution;
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
    for (int32_t b = 0; b < num_blocks_; ++b) {
      const uint64_t mass = shared_->block_sums[b];
      if (rest < mass) {
        const ExpTerms terms = Terms(target, b);
        return FindIn(b, rest, [&](int32_t x) {
          return static_cast<uint64_t>(Weight(level, target, terms, x));
        });
      }
      rest -= mass;
    }
    irregular_ = true;
    return 0;
  }

  __device__ bool Accept(double probability, int32_t v) const {
    return Uniform(Stream().Bits(Purpose::kAccept, sequence_.root_position,
                                 static_cast<uint32_t>(v))) < probability;
  }
  __device__ uint64_t ResidualBits(int32_t v) const {
    return Stream().Bits(Purpose::kResidual, sequence_.root_position, static_cast<uint32_t>(v));
  }

 private:
  __device__ int32_t DraftRow(int32_t child) const {
    return sequence_.draft_per_node != 0 ? child : nodes_[nodes_[child].parent].row;
  }
  __device__ double DraftWeight(int32_t row, int32_t x) const {
    const int64_t at = static_cast<int64_t>(row) * params_.vocab_size + x;
    return ToGrid(sequence_.draft_f64 != 0 ? static_cast<const double*>(sequence_.draft)[at]
                                           : static_cast<const float*>(sequence_.draft)[at]);
  }
  __device__ bool Excludes(int32_t child) const {
    return nodes_[child].drawn == kDrawnWithoutReplacement && sequence_.draft_per_node == 0;
  }
  /*! \brief Whether a child's distribution is a complete row of floats, which RowSampler subtracts
   * from a row that is not cut in one pass. */
  __device__ bool InFloats(int32_t child) const {
    return sequence_.cuts == 0 && nodes_[child].drawn != kDrawnDeterministic &&
           sequence_.draft_f64 == 0 &&
           !(Excludes(child) && nodes_[nodes_[child].parent].first_child != child);
  }
  /*! \brief Whether an earlier sibling of a child holds a token. */
  __device__ bool Excluded(int32_t child, int32_t token) const {
    for (int32_t s = nodes_[nodes_[child].parent].first_child; s != child;
         s = nodes_[s].next_sibling) {
      if (nodes_[s].token == token) return true;
    }
    return false;
  }

  /*! \brief The grid weight of a token, in a block of these terms, in the residual after the
   * level's steps. */
  __device__ double Weight(const LevelState& level, const TargetRow& target, const ExpTerms& terms,
                           int32_t x) const {
    const DistributionStep* steps = steps_ + nodes_[level.node].first_step;
    double w;
    int32_t i = 0;
    if (target.greedy < 0 && level.num_steps > 0 && InFloats(steps[0].child)) {
      const float e = Exp2Scaled(Logit(target, x), terms.grid);  // RowSampler::WeightsLess
      const DistributionStep& step = steps[i++];
      const RestFactors factors = MakeRestFactors(step.r_factor * terms.factor, step.d_factor);
      const int64_t row = DraftRow(step.child);
      const float q = static_cast<const float*>(sequence_.draft)[row * params_.vocab_size + x];
      w = static_cast<double>(FixedRest(e, q, factors)) * kGridOfFixed;
    } else {
      w = TargetWeight(target, terms, x);
    }
    for (; i < level.num_steps; ++i) {
      const DistributionStep& step = steps[i];
      if (nodes_[step.child].drawn == kDrawnDeterministic) {
        if (x == nodes_[step.child].token) w = 0;
      } else if (Excludes(step.child) && Excluded(step.child, x)) {
        w = ToGrid(step.a * (w / step.r_total));
      } else {
        const double d = step.d_factor * DraftWeight(DraftRow(step.child), x);
        const double residual = FMA(step.r_factor, w, -d);
        w = residual > 0 ? (residual + kRoundDouble) - kRoundDouble : 0.0;
      }
    }
    return w;
  }
  __device__ double Weight(const LevelState& level, const TargetRow& target, int32_t x) const {
    return Weight(level, target, Terms(target, x / kVocabBlock), x);
  }

  __device__ static DistributionStep StepOf(double a, const ChildDistribution& distribution,
                                            int32_t child, const LevelState& level) {
    return {a, level.total, a * kProbScale / level.total, kProbScale / distribution.total, child,
            0};
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
  __device__ uint64_t SumResidual(const LevelState& level, const TargetRow& target) {
    const DistributionStep* steps = steps_ + nodes_[level.node].first_step;
    const bool first_rest = target.greedy < 0 && level.num_steps == 1 && InFloats(steps[0].child);
    if (!first_rest) {
      SumBlocks(target, [&](const ExpTerms& terms, int32_t x) {
        return static_cast<uint64_t>(Weight(level, target, terms, x));
      });
    } else if (sequence_.target_type == DType::kFloat32) {
      SumFirstRest<DType::kFloat32>(steps[0], target);
    } else if (sequence_.target_type == DType::kFloat16) {
      SumFirstRest<DType::kFloat16>(steps[0], target);
    } else {
      SumFirstRest<DType::kBFloat16>(steps[0], target);
    }
    uint64_t total = 0;
    for (int32_t b = 0; b < num_blocks_; ++b) total += shared_->block_sums[b];
    sums_node_ = level.node;
    sums_steps_ = level.num_steps;
    sums_total_ = total;
    return total;
  }

  /*! \brief Weight after the first subtraction of a row of floats, the most frequent one: nothing
   * but the logits and that row is read for a token. */
  template <DType kType>
  __device__ void SumFirstRest(const DistributionStep& step, const TargetRow& target) {
    const double r_factor = step.r_factor, d_factor = step.d_factor;
    const void* logits = target.logits;
    const auto* draft = static_cast<const float*>(sequence_.draft) +
                        static_cast<int64_t>(DraftRow(step.child)) * params_.vocab_size;
    SumBlocks(target, [=](const ExpTerms& terms, int32_t x) {
      const RestFactors factors = MakeRestFactors(r_factor * terms.factor, d_factor);
      const float e = Exp2Scaled(LoadElement(logits, kType, x), terms.grid);
      return static_cast<uint64_t>(static_cast<double>(FixedRest(e, draft[x], factors)) *
                                   kGridOfFixed);
    });
  }

  DistributionStep* steps_;
  /*! \brief Whose sums the shared memory holds: a residual is often sampled right after it was
   * summed. */
  int32_t sums_node_ = -1, sums_steps_ = 0;
  uint64_t sums_total_ = 0;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_VERIFY_DISTRIBUTION_CUH_
