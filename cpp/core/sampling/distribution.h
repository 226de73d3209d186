/*!
 * \file core/sampling/distribution.h
 * \brief Probability distributions over the vocabulary as integer weights, and operations on whole
 * rows.
 */
#ifndef KVCTL_CORE_SAMPLING_DISTRIBUTION_H_
#define KVCTL_CORE_SAMPLING_DISTRIBUTION_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/sampling/vocab_ops.h"

namespace kvctl {

/*! \brief The size of the pieces of a block that temporary values are computed in: a piece stays in
 * the first-level cache. */
constexpr int32_t kVocabPiece = 512;
/*! \brief The largest vocabulary whose exponential weights sum below 2^64. */
constexpr int32_t kMaxVocab = 1 << 19;

/*!
 * \brief A rounded sum of grid weights from here on is certainly above 0: each weight is off by a
 * half at most. It is a billionth of the whole.
 */
constexpr double kSureMass = 0x1p20;
static_assert(kSureMass > kMaxVocab, "each weight is off by half at most");

/*!
 * \brief A distribution over tokens: weights / total.
 *
 * Weights are integers below 2^53 held in doubles, so every sum of them is exact and does not
 * depend on order, threads or device.
 */
struct Distribution {
  std::vector<double> weights;
  std::vector<double> block_sums;  //!< one per kVocabBlock weights
  double total = 0;

  double prob(int32_t token) const { return weights[token] / total; }
  /*! \brief Sets the weight of a token to 0. */
  void Remove(int32_t token);
};

/*! \brief Runs body for each block, perhaps in several threads; a kernel library provides them. */
using ForBlocks = std::function<void(int32_t num_blocks, const std::function<void(int32_t)>& body)>;

/*! \brief The vocabulary's size and blocks, the table of loops, and the threads. */
class VocabContext {
 public:
  VocabContext(int32_t size, const VocabOps& ops = ScalarVocabOps(),
               ForBlocks for_blocks = nullptr);

  int32_t size() const { return size_; }
  int32_t num_blocks() const { return num_blocks_; }
  int32_t block_size(int32_t block) const { return std::min(kVocabBlock, size_ - Begin(block)); }
  const VocabOps& ops() const { return ops_; }
  static int32_t Begin(int32_t block) { return block * kVocabBlock; }

  /*! \brief Calls body(block) for every block, perhaps in several threads. */
  void ForEachBlock(const std::function<void(int32_t)>& body) const {
    for_blocks_(num_blocks_, body);
  }
  /*! \brief sums[b] = sum(begin, size) of each block; returns their sum. */
  template <typename T, typename F>
  T SumBlocks(F sum, std::vector<T>* sums) const {
    sums->resize(num_blocks_);
    ForEachBlock([&](int32_t b) { (*sums)[b] = sum(Begin(b), block_size(b)); });
    T total = 0;
    for (T s : *sums) total += s;
    return total;
  }

  /*! \return whether every probability is in [0, 1.001] and they sum to 1 within 1e-3. */
  bool FromProbs(const float* probs, Distribution* distribution) const;
  bool FromProbs(const double* probs, Distribution* distribution) const;
  /*! \brief The sum of the grid weights of probabilities, NaN if they are no distribution. */
  double SumProbs(const float* probs) const;
  double SumProbs(const double* probs) const;
  void OneHot(int32_t token, Distribution* distribution) const;
  int32_t SampleToken(const Distribution& distribution, uint64_t bits) const;

 private:
  int32_t size_;
  int32_t num_blocks_;
  const VocabOps& ops_;
  ForBlocks for_blocks_;
};

/*! \brief A number in [0, total) from 64 random bits. */
inline uint64_t Below(uint64_t total, uint64_t bits) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(bits) * total) >> 64);
}

/*! \brief Calls f(begin, size) for the pieces of [at, at + n) in order. */
template <typename F>
void ForPieces(int32_t at, int32_t n, F f) {
  for (int32_t i = 0; i < n; i += kVocabPiece) f(at + i, std::min(kVocabPiece, n - i));
}

/*!
 * \brief The token in [at, at + n) in which a running sum of integer weights exceeds `rest`.
 *
 * \param weights (at, n, T* out) -> their sum; called for pieces in order, with out null until the
 * token's piece is found.
 * \return -1 where all of them sum to `rest` or less.
 */
template <typename T, typename F>
int32_t PickToken(int32_t at, int32_t n, T rest, F weights) {
  for (int32_t i = 0; i < n; i += kVocabPiece) {
    const int32_t size = std::min(kVocabPiece, n - i);
    const T sum = weights(at + i, size, static_cast<T*>(nullptr));
    if (rest >= sum) {
      rest -= sum;
      continue;
    }
    T piece[kVocabPiece];
    weights(at + i, size, piece);
    for (int32_t j = 0;; ++j) {
      if (rest < piece[j]) return at + i + j;
      rest -= piece[j];
    }
  }
  return -1;
}

}  // namespace kvctl

#endif  // KVCTL_CORE_SAMPLING_DISTRIBUTION_H_
