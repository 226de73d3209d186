/*!
 * \file kernels/cuda/verify_law.cuh
 * \brief What a block of threads knows of one sequence's laws: RowSampler, Law and Round of
 * core, with the vocabulary spread over threads and nothing of its size stored.
 *
 * The weights of a law are computed from the logits whenever they are needed: exponentials on the
 * row's grid, then the subtractions that rejected siblings have left. Control flow is the same in
 * all threads of a block, and so are the results of every function here.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_LAW_CUH_
#define KVCTL_KERNELS_CUDA_VERIFY_LAW_CUH_

#include <cmath>

#include "core/exact_math.h"
#include "core/law.h"
#include "core/rng.h"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/verify.cuh"

namespace kvctl::cuda {

constexpr int32_t kMaxVocabBlocks = kMaxVocab / kVocabBlock;
constexpr int32_t kMaxWarps = 32;

/*! \brief Shared memory of a walk. */
struct WalkShared {
  uint64_t block_sums[kMaxVocabBlocks];
  uint64_t warp_sums[kMaxWarps];
  double scores[kMaxWarps];
  int32_t tokens[kMaxWarps];
  int32_t found;
};

/*! \brief Drawn, as core/round.h numbers it. */
constexpr int32_t kDrawnDeterministic = 0, kDrawnWithoutReplacement = 2;

/*! \brief A target row and the sums of its blocks. */
struct TargetRow {
  const void* logits;
  const BlockSum* sums;
  int32_t exponent;
  uint64_t total;
  int32_t greedy;  //!< the token, or -1 where the row is sampled
};

/*! \brief DraftLaw of core/round.h. */
struct ChildLaw {
  bool one_hot;
  int32_t token;
  double weight, total;
  __device__ double prob() const { return weight / total; }
};

class SequenceLaws {
 public:
  __device__ SequenceLaws(const VerifyParams& params, const VerifySequence& sequence,
                          WalkShared* shared)
      : params_(params),
        sequence_(sequence),
        nodes_(reinterpret_cast<const VerifyNode*>(reinterpret_cast<const char*>(params.plan) +
                                                   params.plan->nodes) +
               sequence.first_node),
        steps_(params.steps + sequence.first_node),
        shared_(shared),
        num_blocks_((params.vocab_size + kVocabBlock - 1) / kVocabBlock) {}

  __device__ const VerifyNode& node(int32_t i) const { return nodes_[i]; }
  __device__ bool irregular() const { return irregular_; }

  /*! \brief The target's row after a node. */
  __device__ KVCTL_NOINLINE TargetRow Target(int32_t v) {
    const int32_t row = nodes_[v].row;
    TargetRow target;
    target.logits = static_cast<const char*>(sequence_.target) +
                    static_cast<int64_t>(row) * params_.vocab_size *
                        (sequence_.target_type == DType::kFloat32 ? 4 : 2);
    target.sums = params_.sums + static_cast<int64_t>(sequence_.target_rows + row) * num_blocks_;
    target.exponent = target.sums[0].exponent;
    float max = target.sums[0].max;
    int32_t first = target.sums[0].first;
    for (int32_t b = 1; b < num_blocks_; ++b) {
      const BlockSum& sum = target.sums[b];
      if (sum.exponent > target.exponent) target.exponent = sum.exponent;
      if (sum.max > max) {
        max = sum.max;
        first = sum.first;
      }
    }
    target.greedy = sequence_.greedy != 0 ? first : -1;
    const bool exponent_regular =
        fabsf(static_cast<float>(target.exponent)) <= kMaxExponent && max > -INFINITY;
    if (!exponent_regular &&
        (target.greedy < 0 || max == -INFINITY || params_.log_probs != nullptr)) {
      irregular_ = true;
    }
    target.total = 0;
    for (int32_t b = 0; exponent_regular && b < num_blocks_; ++b) {
      target.total += ShiftDown(target.sums[b].exp_sum, target.exponent - target.sums[b].exponent);
    }
    return target;
  }

  /*! \brief RowSampler::Prob. */
  __device__ KVCTL_NOINLINE double Prob(const TargetRow& target, int32_t token) {
    if (target.greedy >= 0) return token == target.greedy ? 1.0 : 0.0;
    return SoftmaxProb(target, token);
  }
  /*! \brief RowSampler::LogProb. */
  __device__ KVCTL_NOINLINE double LogProb(const TargetRow& target, int32_t token) {
    const double prob = SoftmaxProb(target, token);
    return prob > 0 ? ExactLog(prob) : -INFINITY;
  }

  /*! \brief RowSampler::Pick. */
  __device__ KVCTL_NOINLINE int32_t Pick(const TargetRow& target, uint64_t bits) {
    if (target.greedy >= 0) return target.greedy;
    uint64_t rest = Below(target.total, bits);
    for (int32_t b = 0; b < num_blocks_; ++b) {
      const int32_t shift = target.exponent - target.sums[b].exponent;
      const uint64_t mass = ShiftDown(target.sums[b].exp_sum, shift);
      if (rest >= mass) {
        rest -= mass;
        continue;
      }
      const ExpGrid grid = Terms(target, b).grid;
      return FindIn(b, rest << shift,
                    [&](int32_t x) { return ToFixed(Exp2Scaled(Logit(target, x), grid)); });
    }
    irregular_ = true;
    return 0;
  }

  /*! \brief RowSampler::Sample: by the noise of its own position. */
  __device__ int32_t Sample(const TargetRow& target, uint32_t position) {
    if (sequence_.gumbel == 0) return Pick(target, Stream().Bits(Purpose::kToken, position, 0));
    return target.greedy >= 0 ? target.greedy : Gumbel(target, position);
  }

  /*! \brief Round::Draft: the law a node was drawn from. */
  __device__ KVCTL_NOINLINE ChildLaw Draft(int32_t child) {
    const VerifyNode& node = nodes_[child];
    if (node.drawn == kDrawnDeterministic) return {true, node.token, 1, 1};
    const int32_t row = DraftRow(child);
    const BlockSum* sums =
        params_.sums + static_cast<int64_t>(sequence_.draft_rows + row) * num_blocks_;
    double total = 0;
    for (int32_t b = 0; b < num_blocks_; ++b) total += sums[b].law_sum;
    if (!(fabs(total / kProbScale - 1) <= 1e-3)) irregular_ = true;
    ChildLaw law{false, node.token, DraftWeight(row, node.token), total};
    if (Excludes(child)) {
      for (int32_t s = nodes_[node.parent].first_child; s != child; s = nodes_[s].next_sibling) {
        if (Excluded(s, nodes_[s].token)) continue;  // an earlier sibling took it away
        law.total -= DraftWeight(row, nodes_[s].token);
      }
      if (Excluded(child, node.token)) irregular_ = true;
    }
    if (!(law.weight > 0)) irregular_ = true;
    return law;
  }

  /*! \brief Residual::prob. */
  __device__ KVCTL_NOINLINE double LeftProb(const LevelState& level, const TargetRow& target,
                                            int32_t token) const {
    return Weight(level, target, token) / level.total;
  }

  /*! \brief Residual::Subtract. */
  __device__ KVCTL_NOINLINE double Subtract(double a, const ChildLaw& law, int32_t child,
                                            LevelState* level, const TargetRow& target) {
    const double before = level->total;
    LevelState out = *level;
    out.total = law.one_hot ? before - Weight(*level, target, law.token) : 0;
    PutStep(&out, StepOf(a, law, child, *level));
    if (!(out.total >= kSureMass)) {
      out.total = static_cast<double>(SumLeft(out, target));
      if (!(out.total > 0)) return 0;
    }
    *level = out;
    return law.one_hot ? a * (out.total / before) : out.total / kProbScale;
  }

  /*! \brief Residual::Pick. */
  __device__ KVCTL_NOINLINE int32_t PickLeft(const LevelState& level, const TargetRow& target,
                                             uint64_t bits) {
    uint64_t rest = Below(SumLeft(level, target), bits);
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

  __device__ RandomStream Stream() const { return {sequence_.seed, sequence_.request}; }
  __device__ bool Accept(double probability, int32_t v) const {
    return Uniform(Stream().Bits(Purpose::kAccept, sequence_.root_position,
                                 static_cast<uint32_t>(v))) < probability;
  }
  __device__ uint64_t ResidualBits(int32_t v) const {
    return Stream().Bits(Purpose::kResidual, sequence_.root_position, static_cast<uint32_t>(v));
  }

 private:
  __device__ static uint64_t ShiftDown(uint64_t sum, int32_t shift) {
    return shift >= 64 ? 0 : sum >> shift;
  }
  __device__ static uint64_t Below(uint64_t total, uint64_t bits) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(bits) * total) >> 64);
  }

  __device__ float Logit(const TargetRow& target, int32_t x) const {
    return LoadElement(target.logits, sequence_.target_type, x);
  }
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
  /*! \brief Whether a child's law is that of a whole row of floats. */
  __device__ bool InFloats(int32_t child) const {
    return nodes_[child].drawn != kDrawnDeterministic && sequence_.draft_f64 == 0 &&
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

  __device__ double SoftmaxProb(const TargetRow& target, int32_t token) const {
    const int32_t exponent = target.sums[token / kVocabBlock].exponent;
    if (exponent == kEmptyBlock) return 0;
    const ExpGrid grid = MakeExpGrid(sequence_.scale, static_cast<float>(exponent));
    const auto weight = static_cast<double>(ToFixed(Exp2Scaled(Logit(target, token), grid)));
    return ldexp(weight, exponent - target.exponent) / static_cast<double>(target.total);
  }

  /*! \brief ExpRow::terms. */
  __device__ ExpTerms Terms(const TargetRow& target, int32_t block) const {
    const int32_t exponent = target.sums[block].exponent;
    if (exponent == kEmptyBlock) return {MakeExpGrid(sequence_.scale, 0), 0};
    return {MakeExpGrid(sequence_.scale, static_cast<float>(exponent)),
            ldexp(kProbScale / static_cast<double>(target.total), exponent - target.exponent)};
  }

  /*! \brief The grid weight of a token, in a block of these terms, in what the level's steps have
   * left of the row's law. */
  __device__ double Weight(const LevelState& level, const TargetRow& target, const ExpTerms& terms,
                           int32_t x) const {
    const LawStep* steps = steps_ + nodes_[level.node].first_step;
    double w;
    int32_t i = 0;
    if (target.greedy >= 0) {
      w = x == target.greedy ? kProbScale : 0;
    } else {
      const float e = Exp2Scaled(Logit(target, x), terms.grid);
      if (level.num_steps > 0 && InFloats(steps[0].child)) {  // RowSampler::WeightsLess
        const LawStep& step = steps[i++];
        const RestFactors factors = MakeRestFactors(step.r_factor * terms.factor, step.d_factor);
        const int64_t row = DraftRow(step.child);
        const float q = static_cast<const float*>(sequence_.draft)[row * params_.vocab_size + x];
        w = static_cast<double>(FixedRest(e, q, factors)) * kGridOfFixed;
      } else {
        const double rounded = (static_cast<double>(e) + kRoundDouble) - kRoundDouble;
        w = FMA(rounded, terms.factor, kRoundDouble) - kRoundDouble;
      }
    }
    for (; i < level.num_steps; ++i) {
      const LawStep& step = steps[i];
      if (nodes_[step.child].drawn == kDrawnDeterministic) {
        if (x == nodes_[step.child].token) w = 0;
      } else if (Excludes(step.child) && Excluded(step.child, x)) {
        w = ToGrid(step.a * (w / step.r_total));
      } else {
        const double d = step.d_factor * DraftWeight(DraftRow(step.child), x);
        const double left = FMA(step.r_factor, w, -d);
        w = left > 0 ? (left + kRoundDouble) - kRoundDouble : 0.0;
      }
    }
    return w;
  }
  __device__ double Weight(const LevelState& level, const TargetRow& target, int32_t x) const {
    return Weight(level, target, Terms(target, x / kVocabBlock), x);
  }

  __device__ static LawStep StepOf(double a, const ChildLaw& law, int32_t child,
                                   const LevelState& level) {
    return {a, level.total, a * kProbScale / level.total, kProbScale / law.total, child, 0};
  }

  /*! \brief Adds a step behind those of a level; the level of another walk step may overwrite it.
   */
  __device__ void PutStep(LevelState* level, const LawStep& step) {
    __syncthreads();
    if (threadIdx.x == 0) steps_[nodes_[level->node].first_step + level->num_steps] = step;
    __syncthreads();
    ++level->num_steps;
  }

  /*! \brief The sum of what is left over the vocabulary, and in shared memory that of each block.
   */
  __device__ uint64_t SumLeft(const LevelState& level, const TargetRow& target) {
    const int32_t lane = threadIdx.x % 32, warps = blockDim.x / 32;
    __syncthreads();
    for (int32_t b = threadIdx.x / 32; b < num_blocks_; b += warps) {
      const int32_t begin = b * kVocabBlock;
      const int32_t end = min(begin + kVocabBlock, params_.vocab_size);
      const ExpTerms terms = Terms(target, b);
      uint64_t sum = 0;
#pragma unroll 4
      for (int32_t x = begin + lane; x < end; x += 32) {
        sum += static_cast<uint64_t>(Weight(level, target, terms, x));
      }
      sum = WarpSum(sum);
      if (lane == 0) shared_->block_sums[b] = sum;
    }
    __syncthreads();
    uint64_t total = 0;
    for (int32_t b = 0; b < num_blocks_; ++b) total += shared_->block_sums[b];
    return total;
  }

  /*! \brief The first token of a block up to which the weights sum to more than `rest`. */
  template <typename F>
  __device__ int32_t FindIn(int32_t block, uint64_t rest, F weight) {
    const auto threads = static_cast<int32_t>(blockDim.x);
    const int32_t each = kVocabBlock / threads, warp = threadIdx.x / 32;
    const int32_t begin = block * kVocabBlock + static_cast<int32_t>(threadIdx.x) * each;
    const int32_t end = min(begin + each, params_.vocab_size);
    uint64_t sum = 0;
    for (int32_t x = begin; x < end; ++x) sum += weight(x);
    uint64_t before = WarpPrefix(sum);
    __syncthreads();
    if (threadIdx.x % 32 == 31) shared_->warp_sums[warp] = before;
    __syncthreads();
    for (int32_t w = 0; w < warp; ++w) before += shared_->warp_sums[w];
    before -= sum;
    if (rest >= before && rest < before + sum) {
      uint64_t left = rest - before;
      int32_t x = begin;
      for (uint64_t w = weight(x); left >= w; w = weight(++x)) left -= w;
      shared_->found = x;
    }
    __syncthreads();
    return shared_->found;
  }

  /*! \brief Vocab::Gumbel: the token with the least noise / weight, the lower id of equals. */
  __device__ KVCTL_NOINLINE int32_t Gumbel(const TargetRow& target, uint32_t position) {
    const RandomStream stream = Stream();
    const ExpGrid grid = MakeExpGrid(sequence_.scale, static_cast<float>(target.exponent));
    double best = INFINITY;
    int32_t winner = INT32_MAX;
    const auto take = [&](double score, int32_t token) {
      if (score < best || (score == best && token < winner)) {
        best = score;
        winner = token;
      }
    };
    for (int32_t x = threadIdx.x; x < params_.vocab_size; x += static_cast<int32_t>(blockDim.x)) {
      const uint64_t weight = ToFixed(Exp2Scaled(Logit(target, x), grid));
      if (weight == 0) continue;
      const auto words = stream.Words(Purpose::kGumbel, position, static_cast<uint32_t>(x) / 2);
      const int half = (x & 1) * 2;
      const uint64_t bits = (static_cast<uint64_t>(words[half + 1]) << 32) | words[half];
      take(-ExactLog(OpenUniform(bits)) / static_cast<double>(weight), x);
    }
    for (int delta = 16; delta > 0; delta /= 2) {
      const double score = __shfl_xor_sync(kAllLanes, best, delta);
      const int32_t token = __shfl_xor_sync(kAllLanes, winner, delta);
      take(score, token);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
      shared_->scores[threadIdx.x / 32] = best;
      shared_->tokens[threadIdx.x / 32] = winner;
    }
    __syncthreads();
    for (uint32_t w = 0; w < blockDim.x / 32; ++w) take(shared_->scores[w], shared_->tokens[w]);
    return winner;
  }

  const VerifyParams& params_;
  const VerifySequence& sequence_;
  const VerifyNode* nodes_;
  LawStep* steps_;
  WalkShared* shared_;
  const int32_t num_blocks_;
  bool irregular_ = false;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_LAW_CUH_
