/*!
 * \file core/sampling/softmax_row.h
 * \brief The softmax of a row in one pass over its logits, for single probabilities and samples.
 */
#ifndef KVCTL_CORE_SAMPLING_SOFTMAX_ROW_H_
#define KVCTL_CORE_SAMPLING_SOFTMAX_ROW_H_

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "core/sampling/distribution.h"
#include "core/sampling/logit_row.h"
#include "core/support/exact_math.h"

namespace kvctl {

/*! \brief The largest logit; NaN is ignored, and -inf returned if no other is left. */
float MaxLogit(const VocabContext& vocab, const LogitRow& logits);
/*! \brief The first token with the largest logit; -1 if every logit is -inf or NaN. */
int32_t ArgMaxLogit(const VocabContext& vocab, const LogitRow& logits);

/*! \brief What logits are multiplied by before they are exponents of two. */
float SoftmaxScale(double temperature);

/*! \brief Where a random number falls among the blocks of a row. */
struct ChosenBlock {
  int64_t block;
  uint64_t rest;  //!< what the block's tokens share, on its own grid
};

/*!
 * \brief The block that 64 random bits choose.
 * \param exponents, sums Of all blocks of a row, as SoftmaxRow sums them.
 * \return nothing where exponents lose their meaning, or no token has a weight.
 */
std::optional<ChosenBlock> ChooseBlock(const std::vector<int32_t>& exponents,
                                       const std::vector<uint64_t>& sums, uint64_t bits);

/*! \brief The token of a block in which a running sum of its weights exceeds `rest`. */
int32_t TokenInBlock(const VocabContext& vocab, const LogitRow& logits, float scale,
                     int32_t exponent, int32_t block, uint64_t rest);

/*! \brief The sums of the exponentials of a row. */
class SoftmaxRow {
 public:
  /*!
   * \brief Sums 2^(logits * scale) reading each logit once: every block at the power of two of its
   * own maximum, then the blocks at that of the largest.
   * \param scale log2(e) / temperature
   * \return false if scaled logits are infinite or beyond 2^22, where exponents lose their meaning.
   */
  bool Sum(const VocabContext& vocab, const LogitRow& logits, float scale);

  /*! \brief The token that 64 random bits draw. */
  int32_t SampleToken(const VocabContext& vocab, const LogitRow& logits, uint64_t bits) const;
  /*! \brief The probability of a token. */
  double Prob(const LogitRow& logits, int32_t token) const;
  /*! \brief Each block's own power of two, and its sum there. */
  const std::vector<int32_t>& exponents() const { return exponents_; }
  const std::vector<uint64_t>& block_sums() const { return block_sums_; }
  /*! \brief The exponent of the row's largest block. */
  int32_t exponent() const { return exponent_; }
  /*! \brief How the logits of a block become grid weights; up to their rounding these sum to
   * kProbScale over the row. */
  ExpTerms terms(int32_t block) const;

 private:
  float scale_ = 0;
  int32_t exponent_ = 0;
  uint64_t total_ = 0;                // at 2^(kExpBits - exponent)
  std::vector<int32_t> exponents_;    // [blocks] each block's own power of two
  std::vector<uint64_t> block_sums_;  // [blocks] each at its own exponent
};

}  // namespace kvctl

#endif  // KVCTL_CORE_SAMPLING_SOFTMAX_ROW_H_
