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
#include "kernels/cuda/device/elements.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/verify/reduce.cuh"
#include "kernels/cuda/verify/verify.cuh"

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

/*! \brief A target row and the sums of its blocks. */
struct TargetRow {
  const void* logits;
  const BlockSum* sums;
  int32_t exponent;
  uint64_t total;
  int32_t greedy;  //!< the token, or -1 where the row is sampled
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
        num_blocks_((params.vocab_size + kVocabBlock - 1) / kVocabBlock) {}

  __device__ const VerifyNode& node(int32_t i) const { return nodes_[i]; }
  __device__ bool irregular() const { return irregular_; }

  /*! \brief The target's row after a node. */
  __device__ KVCTL_NOINLINE TargetRow Target(int32_t v) {
    const bool processed = sequence_.target == nullptr;
    const int32_t row = processed ? v : nodes_[v].row;
    TargetRow target;
    if (processed) {
      target.logits =
          params_.scratch + static_cast<int64_t>(sequence_.scratch_row + v) * params_.vocab_size;
    } else {
      target.logits = static_cast<const char*>(sequence_.target) +
                      static_cast<int64_t>(row) * params_.vocab_size *
                          (sequence_.target_type == DType::kFloat32 ? 4 : 2);
    }
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

  /*! \brief RowSampler::SampleToken. */
  __device__ KVCTL_NOINLINE int32_t SampleToken(const TargetRow& target, uint64_t bits) {
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

  /*! \brief RowSampler::Sample, with the noise of the token's position. */
  __device__ int32_t Sample(const TargetRow& target, uint32_t position) {
    if (sequence_.gumbel == 0)
      return SampleToken(target, Stream().Bits(Purpose::kToken, position, 0));
    if (target.greedy >= 0) return target.greedy;
    return Gumbel(target, position, [](int32_t) { return false; });
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
            ldexp(kProbScale / static_cast<double>(target.total), exponent - target.exponent)};
  }

  /*! \brief RowSampler::Weights of one token, in a block of these terms. */
  __device__ double TargetWeight(const TargetRow& target, const ExpTerms& terms, int32_t x) const {
    if (target.greedy >= 0) return x == target.greedy ? kProbScale : 0;
    const float e = Exp2Scaled(Logit(target, x), terms.grid);
    const double rounded = (static_cast<double>(e) + kRoundDouble) - kRoundDouble;
    return FMA(rounded, terms.factor, kRoundDouble) - kRoundDouble;
  }

  /*! \brief Sums weight(terms of the block, token) over each block of the vocabulary. */
  template <typename F>
  __device__ void SumBlocks(const TargetRow& target, F weight) {
    const int32_t lane = threadIdx.x % 32, warps = blockDim.x / 32;
    __syncthreads();
    for (int32_t b = threadIdx.x / 32; b < num_blocks_; b += warps) {
      const int32_t begin = b * kVocabBlock;
      const int32_t end = min(begin + kVocabBlock, params_.vocab_size);
      const ExpTerms terms = Terms(target, b);
      uint64_t sum = 0;
#pragma unroll 4
      for (int32_t x = begin + lane; x < end; x += 32) {
        sum += weight(terms, x);
      }
      sum = WarpSum(sum);
      if (lane == 0) shared_->block_sums[b] = sum;
    }
    __syncthreads();
  }

  /*! \brief RowSampler::SampleGumbel: the token with the least noise / weight, the lower id of
   * equals, of those that are not excluded(token); INT32_MAX if none is left. */
  template <typename F>
  __device__ KVCTL_NOINLINE int32_t Gumbel(const TargetRow& target, uint32_t position, F excluded) {
    const RandomStream stream = Stream();
    const ExpGrid grid = MakeExpGrid(sequence_.scale, static_cast<float>(target.exponent));
    Least least;
    for (int32_t x = threadIdx.x; x < params_.vocab_size; x += static_cast<int32_t>(blockDim.x)) {
      const uint64_t weight = ToFixed(Exp2Scaled(Logit(target, x), grid));
      if (weight == 0 || excluded(x)) continue;
      const auto words = stream.Words(Purpose::kGumbel, position, static_cast<uint32_t>(x) / 2);
      const int half = (x & 1) * 2;
      const uint64_t bits = (static_cast<uint64_t>(words[half + 1]) << 32) | words[half];
      least.Take(-ExactLog(OpenUniform(bits)) / static_cast<double>(weight), x);
    }
    return Winner(least);
  }

  /*! \brief The least score and the first token that has it. */
  struct Least {
    double score = INFINITY;
    int32_t token = INT32_MAX;
    __device__ void Take(double other, int32_t other_token) {
      if (other < score || (other == score && other_token < token)) {
        score = other;
        token = other_token;
      }
    }
  };

  /*! \brief The token of the least of all threads. */
  __device__ int32_t Winner(Least least) {
    for (int delta = 16; delta > 0; delta /= 2) {
      const double score = __shfl_xor_sync(kAllLanes, least.score, delta);
      const int32_t token = __shfl_xor_sync(kAllLanes, least.token, delta);
      least.Take(score, token);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
      shared_->scores[threadIdx.x / 32] = least.score;
      shared_->tokens[threadIdx.x / 32] = least.token;
    }
    __syncthreads();
    for (uint32_t w = 0; w < blockDim.x / 32; ++w) {
      least.Take(shared_->scores[w], shared_->tokens[w]);
    }
    return least.token;
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
      uint64_t remaining = rest - before;
      int32_t x = begin;
      for (uint64_t w = weight(x); remaining >= w; w = weight(++x)) remaining -= w;
      shared_->found = x;
    }
    __syncthreads();
    return shared_->found;
  }

  const VerifyParams& params_;
  const VerifySequence& sequence_;
  const VerifyNode* nodes_;
  WalkShared* shared_;
  const int32_t num_blocks_;
  bool irregular_ = false;

 private:
  __device__ double SoftmaxProb(const TargetRow& target, int32_t token) const {
    const int32_t exponent = target.sums[token / kVocabBlock].exponent;
    if (exponent == kEmptyBlock) return 0;
    const ExpGrid grid = MakeExpGrid(sequence_.scale, static_cast<float>(exponent));
    const auto weight = static_cast<double>(ToFixed(Exp2Scaled(Logit(target, token), grid)));
    return ldexp(weight, exponent - target.exponent) / static_cast<double>(target.total);
  }
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_VERIFY_TARGET_CUH_
