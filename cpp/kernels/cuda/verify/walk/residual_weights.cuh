/*!
 * \file kernels/cuda/verify/walk/residual_weights.cuh
 * \brief The weights of tokens in residuals: Residual of core, of one token or of several at once.
 *
 * They are recomputed from the logits when needed: exponentials on the row's grid, then the
 * subtractions of rejected siblings.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_WALK_RESIDUAL_WEIGHTS_CUH_
#define KVCTL_KERNELS_CUDA_VERIFY_WALK_RESIDUAL_WEIGHTS_CUH_

#include "kernels/cuda/verify/walk/node_facts.cuh"

namespace kvctl::cuda {

class SequenceWeights : public SequenceNodes {
 public:
  __device__ SequenceWeights(const VerifyParams& params, const VerifySequence& sequence,
                             WalkShared* shared, NodeFacts* shared_facts)
      : SequenceNodes(params, sequence, shared, shared_facts),
        steps_(params.steps + sequence.first_node),
        all_vectors_(vectors_ && HasVectors(sequence.draft, sequence.draft_f64 != 0 ? 8 : 4,
                                            params.vocab_size)) {}

 protected:
  /*! \brief Vectors that a lane reads at once to sum a residual: 16 tokens in 256 bytes of logits
   * and probabilities for each, enough on their way to keep one multiprocessor's loads busy. */
  static constexpr int kSumVectors = 4;
  static constexpr int32_t kSumTokens = 32 * kSumVectors * kVectorTokens;  // of a warp
  static_assert(kVocabBlock % kSumTokens == 0, "a warp's tokens are of one block");

  /*! \brief Whether the first step subtracts a complete row of floats, which RowSampler does in one
   * pass from a row that is not cut. */
  __device__ bool StartsInFloats(const LevelState& level, const TargetRow& target) const {
    if (level.num_steps == 0 || target.greedy >= 0 || sequence_.cuts != 0) return false;
    const DistributionStep& first = Steps(level)[0];
    return first.row != nullptr && sequence_.draft_f64 == 0 &&
           !(first.excludes != 0 && nodes_[level.node].first_child != first.child);
  }
  __device__ const DistributionStep* Steps(const LevelState& level) const {
    return steps_ + nodes_[level.node].first_step;
  }

  /*! \brief w less the weight of a distribution. */
  __device__ static double Rest(double w, double draft_weight, const DistributionStep& step) {
    const double residual = FMA(step.r_factor, w, -(step.d_factor * draft_weight));
    return residual > 0 ? (residual + kRoundDouble) - kRoundDouble : 0.0;
  }

  /*! \brief The grid weight of a token in the residual after the level's steps. */
  __device__ double Weight(const LevelState& level, const TargetRow& target, int32_t x) const {
    const DistributionStep* steps = Steps(level);
    const ExpTerms terms = Terms(target, x / kVocabBlock);
    double w;
    int32_t i = 0;
    if (StartsInFloats(level, target)) {
      const float e = Exp2Scaled(Logit(target, x), terms.grid);  // RowSampler::WeightsLess
      const DistributionStep& step = steps[i++];
      const RestFactors factors = MakeRestFactors(step.r_factor * terms.factor, step.d_factor);
      w = static_cast<double>(FixedRest(e, static_cast<const float*>(step.row)[x], factors)) *
          kGridOfFixed;
    } else {
      w = TargetWeight(target, terms, x);
    }
    for (; i < level.num_steps; ++i) {
      const DistributionStep& step = steps[i];
      if (step.row == nullptr) {
        if (x == nodes_[step.child].token) w = 0;
      } else if (step.excludes != 0 && Excluded(step.child, x)) {
        w = ToGrid(step.a * (w / step.r_total));
      } else {
        w = Rest(w,
                 ToGrid(sequence_.draft_f64 != 0 ? static_cast<const double*>(step.row)[x]
                                                 : static_cast<const float*>(step.row)[x]),
                 step);
      }
    }
    return w;
  }

  /*! \brief Weight of several tokens of a block, 0 from `end` on; the loads of a row are queued
   * together. */
  template <int kVectors>
  __device__ __forceinline__ void Weights(const LevelState& level, const TargetRow& target,
                                          int32_t block, const TokenSpread& spread, int32_t end,
                                          double (&w)[kVectors][kVectorTokens]) const {
    const DistributionStep* steps = Steps(level);
    const ExpTerms terms = Terms(target, block);
    float values[kVectors][kVectorTokens];
    int32_t i = 0;
    LoadTokens(target.logits, sequence_.target_type, all_vectors_, spread, end, -INFINITY, values);
    if (StartsInFloats(level, target)) {
      const DistributionStep& step = steps[i++];
      const RestFactors factors = MakeRestFactors(step.r_factor * terms.factor, step.d_factor);
      float q[kVectors][kVectorTokens];
      LoadTokens(step.row, DType::kFloat32, all_vectors_, spread, end, 0.f, q);
      ForTokens<kVectors>([&](int v, int j) {
        const uint64_t fixed = FixedRest(Exp2Scaled(values[v][j], terms.grid), q[v][j], factors);
        w[v][j] = static_cast<double>(fixed) * kGridOfFixed;
      });
    } else if (target.greedy >= 0) {
      ForTokens<kVectors>(
          [&](int v, int j) { w[v][j] = spread.at(v, j) == target.greedy ? kProbScale : 0; });
    } else {
      ForTokens<kVectors>(
          [&](int v, int j) { w[v][j] = GridWeight(Exp2Scaled(values[v][j], terms.grid), terms); });
    }
    for (; i < level.num_steps; ++i) Apply(steps[i], spread, end, w);
    ForTokens<kVectors>([&](int v, int j) {
      if (spread.at(v, j) >= end) w[v][j] = 0;
    });
  }

  template <int kVectors, typename F>
  __device__ __forceinline__ static void ForTokens(F f) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int j = 0; j < kVectorTokens; ++j) f(v, j);
    }
  }

  /*! \brief One subtraction from the weights of several tokens. */
  template <int kVectors>
  __device__ __forceinline__ void Apply(const DistributionStep& step, const TokenSpread& spread,
                                        int32_t end, double (&w)[kVectors][kVectorTokens]) const {
    if (step.row == nullptr) {
      const int32_t token = nodes_[step.child].token;
      ForTokens<kVectors>([&](int v, int j) {
        if (spread.at(v, j) == token) w[v][j] = 0;
      });
      return;
    }
    uint32_t excluded = 0;  // a bit for each token
    if (step.excludes != 0) {
      for (int32_t s = nodes_[nodes_[step.child].parent].first_child; s != step.child;
           s = nodes_[s].next_sibling) {
        const int32_t token = nodes_[s].token;
        ForTokens<kVectors>([&](int v, int j) {
          excluded |= static_cast<uint32_t>(spread.at(v, j) == token) << (v * kVectorTokens + j);
        });
      }
    }
    const auto subtract = [&](int v, int j, double draft_weight) {
      w[v][j] = (excluded >> (v * kVectorTokens + j) & 1) != 0
                    ? ToGrid(step.a * (w[v][j] / step.r_total))
                    : Rest(w[v][j], draft_weight, step);
    };
    if (sequence_.draft_f64 != 0) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        double q[kVectorTokens];
        LoadDoubles(static_cast<const double*>(step.row), all_vectors_, spread, v, end, q);
        for (int j = 0; j < kVectorTokens; ++j) subtract(v, j, ToGrid(q[j]));
      }
    } else {
      float q[kVectors][kVectorTokens];
      LoadTokens(step.row, DType::kFloat32, all_vectors_, spread, end, 0.f, q);
      ForTokens<kVectors>([&](int v, int j) { subtract(v, j, ToGrid(q[v][j])); });
    }
  }

  /*! \brief The sum of Weight over a lane's tokens after the first subtraction of a row of floats,
   * the most frequent one: in integers. */
  __device__ __forceinline__ uint64_t SumFirstRest(const DistributionStep& step,
                                                   const TargetRow& target, int32_t block,
                                                   const TokenSpread& spread) const {
    float logits[kSumVectors][kVectorTokens], q[kSumVectors][kVectorTokens];
    const int32_t end = params_.vocab_size;
    LoadTokens(target.logits, sequence_.target_type, all_vectors_, spread, end, -INFINITY, logits);
    LoadTokens(step.row, DType::kFloat32, all_vectors_, spread, end, 0.f, q);
    const ExpTerms terms = Terms(target, block);
    const RestFactors factors = MakeRestFactors(step.r_factor * terms.factor, step.d_factor);
    uint64_t sum = 0;
    ForTokens<kSumVectors>([&](int v, int j) {
      const uint64_t fixed = FixedRest(Exp2Scaled(logits[v][j], terms.grid), q[v][j], factors);
      if (spread.at(v, j) < end) sum += fixed;
    });
    return sum * static_cast<uint64_t>(kGridOfFixed);
  }

  DistributionStep* steps_;
  const bool all_vectors_;  // whether rows of the draft distributions are read in vectors too
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_WALK_RESIDUAL_WEIGHTS_CUH_
