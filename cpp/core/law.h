/*!
 * \file core/law.h
 * \brief Probability laws over the vocabulary as integer weights, and what is done to a whole row.
 */
#ifndef KVCTL_CORE_LAW_H_
#define KVCTL_CORE_LAW_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "core/vocab_ops.h"

namespace kvctl {

/*! \brief Rows are worked on in blocks of this many tokens; part of the definition of a row's sums.
 */
constexpr int32_t kVocabBlock = 4096;
/*! \brief The largest vocabulary whose exponential weights sum below 2^64. */
constexpr int32_t kMaxVocab = 1 << 19;

/*!
 * \brief Exponents of two beyond this mean nothing: neighbouring floats are whole powers of two
 * apart.
 */
constexpr float kMaxExponent = 4194304.0f;

/*!
 * \brief A law over tokens: weights / total.
 *
 * Weights are integers below 2^53 held in doubles, so every sum of them is exact and does not
 * depend on order, threads or device.
 */
struct Law {
  std::vector<double> weights;
  std::vector<double> block_sums;  //!< one per kVocabBlock weights
  double total = 0;

  double prob(int32_t token) const { return weights[token] / total; }
  /*! \brief Takes a token's weight away. */
  void Remove(int32_t token);
};

/*! \brief How the blocks of a row are shared out; serial unless a kernel library provides threads.
 */
using ForBlocks = std::function<void(int32_t num_blocks, const std::function<void(int32_t)>& body)>;

/*! \brief The exponentials of a row that one pass has seen. */
struct ExpRow {
  float scale;                       //!< log2(e) / temperature
  int32_t exponent;                  //!< of the largest block
  uint64_t total;                    //!< at 2^(kExpBits - exponent)
  std::vector<int32_t> exponents;    //!< [blocks] each block's own power of two
  std::vector<uint64_t> block_sums;  //!< [blocks] each at its own exponent
};

/*! \brief Work on whole rows of one vocabulary size: the blocks, the table of loops, the threads.
 */
class Vocab {
 public:
  Vocab(int32_t size, const VocabOps& ops = ScalarVocabOps(), ForBlocks for_blocks = nullptr);

  int32_t size() const { return size_; }
  int32_t num_blocks() const { return num_blocks_; }
  const VocabOps& ops() const { return ops_; }

  /*! \brief The first token with the largest logit, NaN ignored; -1 where every logit is -inf or
   * NaN. */
  int32_t ArgMax(const float* logits) const;
  float Max(const float* logits) const;
  /*!
   * \brief Sums 2^(logits * scale) reading each logit once: every block at the power of two of its
   * own maximum, then the blocks at that of the largest.
   * \return false if scaled logits are infinite or beyond 2^22, where exponents mean nothing any
   * more.
   */
  bool SumExps(const float* logits, float scale, ExpRow* row) const;
  /*! \brief The token that 64 random bits draw from a row summed by SumExps. */
  int32_t Pick(const float* logits, const ExpRow& row, uint64_t bits) const;
  /*! \brief The probability of a token of a row summed by SumExps. */
  double Prob(const float* logits, const ExpRow& row, int32_t token) const;

  /*! \brief Fills exps with 2^(logits * scale - exponent + kExpBits); returns the integer sum. */
  uint64_t Exps(const float* logits, float scale, float exponent, float* exps) const;
  /*! \brief The token that 64 random bits draw from weights ToFixed(exps) of the given sum. */
  int32_t Pick(const float* exps, uint64_t total, uint64_t bits) const;
  int32_t Gumbel(const float* exps, const NoiseKey& key) const;

  void FromExps(const float* exps, uint64_t total, Law* law) const;
  /*! \return whether every probability is in [0, 1.001] and they sum to 1 within 1e-3. */
  bool FromProbs(const float* probs, Law* law) const;
  bool FromProbs(const double* probs, Law* law) const;
  /*! \brief The sum of the grid weights of probabilities, NaN if they are no law. */
  double SumProbs(const float* probs) const;
  double SumProbs(const double* probs) const;
  void OneHot(int32_t token, Law* law) const;

  /*! \brief out = relu(a * r - d), both normalised, on the grid of kProbScale; returns its mass. */
  double Subtract(const Law& r, double a, const Law& d, double d_total, Law* out) const;
  int32_t Pick(const Law& law, uint64_t bits) const;

 private:
  int32_t block_size(int32_t block) const;
  void Resize(Law* law) const;
  void SetTotal(Law* law) const;
  template <typename T>
  double SumProbsOf(const T* probs, double (*weights)(const T*, int32_t, double*)) const;
  template <typename T>
  bool FromProbsOf(const T* probs, Law* law, double (*weights)(const T*, int32_t, double*)) const;

  int32_t size_;
  int32_t num_blocks_;
  const VocabOps& ops_;
  ForBlocks for_blocks_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_LAW_H_
