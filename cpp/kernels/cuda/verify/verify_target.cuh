/*!
 * \file kernels/cuda/verify/verify_target.cuh
 * \brief One sequence's target rows for a block of threads: RowSampler and SoftmaxRow of core, with
 * the vocabulary spread over threads and no storage of its size.
 *
 * Control flow is the same in all threads of a block, and so are the results of every function.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_VERIFY_TARGET_CUH_
#define KVCTL_KERNELS_CUDA_VERIFY_VERIFY_TARGET_CUH_

#include <cmath>

#include "core/sampling/distribution.h"
#include "core/support/exact_math.h"
#include "core/support/rng.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/verify/least.cuh"
#include "kernels/cuda/verify/reduce.cuh"
#include "kernels/cuda/verify/row_vectors.cuh"
#include "kernels/cuda/verify/verify.cuh"

namespace kvctl::cuda {

constexpr int32_t kMaxVocabBlocks = kMaxVocab / kVocabBlock;
constexpr int32_t kMaxWarps = 32;
/*! \brief Vectors of adjacent tokens that a thread looks at together to find one. */
constexpr int kFindVectors = 2;

/*! \brief Shared memory of a walk. */
struct WalkShared {
  uint64_t block_sums[kMaxVocabBlocks];
  uint64_t warp_sums[kMaxWarps];
  Least least[kMaxWarps];
  int32_t found;
};

class SequenceTarget {
 public:
  __device__ SequenceTarget(const VerifyParams& params, const VerifySequence& sequence,
                            WalkShared* shared)
      : params_(params),
        sequence_(sequence),
        nodes_(reinterpret_cast<const VerifyNode*>(reinterpret_cast<const char*>(params.plan) +
                                                   params.plan->nodes) +
               sequence.first_node),
        shared_(shared),
        num_blocks_((params.vocab_size + kVocabBlock - 1) / kVocabBlock),
        vectors_(
            HasVectors(sequence.target, ElementBytes(sequence.target_type), params.vocab_size)) {}

  __device__ const VerifyNode& node(int32_t i) const { return nodes_[i]; }
  __device__ bool irregular() const { return irregular_; }

  /*! \brief The target's row after a node, its sums added up by the lanes of each warp. */
  __device__ TargetRow ReadTarget(int32_t v, bool* irregular) const {
    const bool processed = sequence_.target == nullptr;
    const int32_t row = processed ? v : nodes_[v].row;
    TargetRow target;
    if (processed) {
      target.logits =
          params_.scratch + static_cast<int64_t>(sequence_.scratch_row + v) * params_.vocab_size;
    } else {
      target.logits =
          static_cast<const char*>(sequence_.target) +
          static_cast<int64_t>(row) * params_.vocab_size * ElementBytes(sequence_.target_type);
    }
    target.sums = params_.sums + static_cast<int64_t>(sequence_.target_rows + row) * num_blocks_;
    const auto lane = static_cast<int32_t>(threadIdx.x % 32);
    target.exponent = kEmptyBlock;
    Least largest;  // of negated logits
    for (int32_t b = lane; b < num_blocks_; b += 32) {
      const BlockSum& sum = target.sums[b];
      if (sum.exponent > target.exponent) target.exponent = sum.exponent;
      largest.Take(-static_cast<double>(sum.max), sum.first);
    }
    for (int delta = 16; delta > 0; delta /= 2) {
      const int32_t other = __shfl_xor_sync(kAllLanes, target.exponent, delta);
      if (other > target.exponent) target.exponent = other;
    }
    largest = LeastOfWarp(largest);
    const bool empty = largest.score == INFINITY;  // no logit above -inf
    target.greedy = sequence_.greedy != 0 ? largest.token : -1;
    const bool regular = fabsf(static_cast<float>(target.exponent)) <= kMaxExponent && !empty;
    *irregular = !regular && (target.greedy < 0 || empty || params_.log_probs != nullptr);
    uint64_t total = 0;
    for (int32_t b = lane; regular && b < num_blocks_; b += 32) {
      total += ShiftDown(target.sums[b].exp_sum, target.exponent - target.sums[b].exponent);
    }
    target.total = WarpSum(total);
    target.factor = kProbScale / static_cast<double>(target.total);
    return target;
  }

  /*! \brief RowSampler::Prob. */
  __device__ double Prob(const TargetRow& target, int32_t token) const {
    if (target.greedy >= 0) return token == target.greedy ? 1.0 : 0.0;
    return SoftmaxProb(target, token);
  }
  /*! \brief RowSampler::LogProb. */
  __device__ double LogProb(const TargetRow& target, int32_t token) const {
    const double prob = SoftmaxProb(target, token);
    return prob > 0 ? ExactLog(prob) : -INFINITY;
  }

  /*! \brief RowSampler::SampleToken. */
  __device__ KVCTL_NOINLINE int32_t SampleToken(const TargetRow& target, uint64_t bits) {
    if (target.greedy >= 0) return target.greedy;
    uint64_t rest = Below(target.total, bits);
    const auto shift = [&](int32_t b) { return target.exponent - target.sums[b].exponent; };
    const int32_t block =
        FindBlock([&](int32_t b) { return ShiftDown(target.sums[b].exp_sum, shift(b)); }, &rest);
    if (block < 0) {
      irregular_ = true;
      return 0;
    }
    const ExpGrid grid = Terms(target, block).grid;
    return FindIn(block, rest << shift(block), [&](int32_t first, int32_t end, auto& weights) {
      float logits[kFindVectors][kVectorTokens];
      LoadTokens(target.logits, sequence_.target_type, vectors_, AdjacentTokens(first), end,
                 -INFINITY, logits);
#pragma unroll
      for (int v = 0; v < kFindVectors; ++v) {
#pragma unroll
        for (int j = 0; j < kVectorTokens; ++j) {
          weights[v][j] = ToFixed(Exp2Scaled(logits[v][j], grid));
        }
      }
    });
  }

  __device__ RandomStream Stream() const { return {sequence_.seed, sequence_.request}; }

 protected:
  __device__ static uint64_t ShiftDown(uint64_t sum, int32_t shift) {
    return shift >= 64 ? 0 : sum >> shift;
  }
  __device__ static uint64_t Below(uint64_t total, uint64_t bits) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(bits) * total) >> 64);
  }

  __device__ float Logit(const TargetRow& target, int32_t x) const {
    return LoadElement(target.logits, sequence_.target_type, x);
  }
  /*! \brief SoftmaxRow::terms. */
  __device__ ExpTerms Terms(const TargetRow& target, int32_t block) const {
    const int32_t exponent = target.sums[block].exponent;
    if (exponent == kEmptyBlock) return {MakeExpGrid(sequence_.scale, 0), 0};
    return {MakeExpGrid(sequence_.scale, static_cast<float>(exponent)),
            ldexp(target.factor, exponent - target.exponent)};
  }

  /*! \brief RowSampler::Weights of an exponential, in a block of these terms. */
  __device__ static double GridWeight(float exp, const ExpTerms& terms) {
    const double rounded = (static_cast<double>(exp) + kRoundDouble) - kRoundDouble;
    return FMA(rounded, terms.factor, kRoundDouble) - kRoundDouble;
  }
  /*! \brief RowSampler::Weights of one token. */
  __device__ double TargetWeight(const TargetRow& target, const ExpTerms& terms, int32_t x) const {
    if (target.greedy >= 0) return x == target.greedy ? kProbScale : 0;
    return GridWeight(Exp2Scaled(Logit(target, x), terms.grid), terms);
  }

  /*!
   * \brief Sums weights over each block of the vocabulary.
   * \param sum (block, first token, how many tokens) -> the sum of a lane's share of them
   * \param piece tokens that a warp takes at a time
   */
  template <typename F>
  __device__ void SumBlocks(int32_t piece, F sum) {
    __syncthreads();
    for (int32_t b = threadIdx.x; b < num_blocks_; b += static_cast<int32_t>(blockDim.x)) {
      shared_->block_sums[b] = 0;
    }
    __syncthreads();
    const auto step = static_cast<int32_t>(blockDim.x / 32) * piece;
    for (int32_t at = static_cast<int32_t>(threadIdx.x / 32) * piece; at < params_.vocab_size;
         at += step) {
      const uint64_t total = WarpSum(sum(at / kVocabBlock, at));
      if (threadIdx.x % 32 == 0) AddAtomically(total, &shared_->block_sums[at / kVocabBlock]);
    }
    __syncthreads();
  }
  /*! \brief The sum of those sums. */
  __device__ uint64_t SumOfBlocks() const {
    uint64_t total = 0;
    for (auto b = static_cast<int32_t>(threadIdx.x % 32); b < num_blocks_; b += 32) {
      total += shared_->block_sums[b];
    }
    return WarpSum(total);
  }

  /*! \brief The least of all threads. */
  __device__ Least LeastOfBlock(Least least) const {
    least = LeastOfWarp(least);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared_->least[threadIdx.x / 32] = least;
    __syncthreads();
    for (uint32_t w = 0; w < blockDim.x / 32; ++w) {
      least.Take(shared_->least[w].score, shared_->least[w].token);
    }
    return least;
  }

  /*! \brief The first block up to which mass(block) sums to more than `rest`, from which the blocks
   * before are subtracted; -1: none. The lanes of each warp look at 32 at once. */
  template <typename F>
  __device__ int32_t FindBlock(F mass, uint64_t* rest) const {
    const auto lane = static_cast<int32_t>(threadIdx.x % 32);
    for (int32_t first = 0; first < num_blocks_; first += 32) {
      const uint64_t own = first + lane < num_blocks_ ? mass(first + lane) : 0;
      const uint64_t upto = WarpPrefix(own);
      int32_t found = *rest < upto ? lane : 32;
      for (int delta = 16; delta > 0; delta /= 2) {
        found = min(found, __shfl_xor_sync(kAllLanes, found, delta));
      }
      if (found < 32) {
        *rest -= __shfl_sync(kAllLanes, upto - own, found);
        return first + found;
      }
      *rest -= __shfl_sync(kAllLanes, upto, 31);
    }
    return -1;
  }

  /*! \brief The first token of a block up to which the weights sum to more than `rest`.
   * \param weigh (first token, end, out weights): of adjacent tokens; 0 from `end` on. */
  template <typename F>
  __device__ int32_t FindIn(int32_t block, uint64_t rest, F weigh) {
    constexpr int kEach = kFindVectors * kVectorTokens;
    const int32_t warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int32_t end = min((block + 1) * kVocabBlock, params_.vocab_size);
    for (int32_t at = block * kVocabBlock; at < end;
         at += static_cast<int32_t>(blockDim.x) * kEach) {
      const int32_t first = at + static_cast<int32_t>(threadIdx.x) * kEach;
      uint64_t weights[kFindVectors][kVectorTokens], sum = 0;
      weigh(first, end, weights);
#pragma unroll
      for (const auto& vector : weights) sum += vector[0] + vector[1] + vector[2] + vector[3];
      const uint64_t upto = WarpPrefix(sum);
      __syncthreads();  // the sums of the last piece are read no more
      if (threadIdx.x % 32 == 31) shared_->warp_sums[warp] = upto;
      __syncthreads();
      uint64_t before = upto - sum, total = 0;
      for (int32_t w = 0; w < warps; ++w) {
        if (w == warp) before += total;
        total += shared_->warp_sums[w];
      }
      if (rest >= total) {
        rest -= total;
        continue;
      }
      if (rest >= before && rest < before + sum) {
        uint64_t remaining = rest - before;
        bool passed = false;
#pragma unroll
        for (int v = 0; v < kFindVectors; ++v) {
#pragma unroll
          for (int j = 0; j < kVectorTokens; ++j) {
            if (passed) continue;
            passed = remaining < weights[v][j];
            if (passed) shared_->found = first + v * kVectorTokens + j;
            remaining -= weights[v][j];
          }
        }
      }
      __syncthreads();
      return shared_->found;
    }
    irregular_ = true;
    return 0;
  }

  __device__ double SoftmaxProb(const TargetRow& target, int32_t token) const {
    const int32_t exponent = target.sums[token / kVocabBlock].exponent;
    if (exponent == kEmptyBlock) return 0;
    const ExpGrid grid = MakeExpGrid(sequence_.scale, static_cast<float>(exponent));
    const auto weight = static_cast<double>(ToFixed(Exp2Scaled(Logit(target, token), grid)));
    return ldexp(weight, exponent - target.exponent) / static_cast<double>(target.total);
  }

  const VerifyParams& params_;
  const VerifySequence& sequence_;
  const VerifyNode* nodes_;
  WalkShared* shared_;
  const int32_t num_blocks_;
  const bool vectors_;  // whether the target's rows are read in vectors
  bool irregular_ = false;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_VERIFY_TARGET_CUH_
