/*!
 * \file core/sampling.h
 * \brief From a row of logits to the law that tokens are sampled from. The one place that does it.
 *
 * In this order: logit bias; repetition, presence and frequency penalties; bitmask; temperature;
 * top-k; top-p; min-p. NaN counts as -inf; where a logit is +inf, or so large that its exponent
 * means nothing, the tokens with the largest logit share the row equally. A row with no token above
 * -inf is an error.
 */
#ifndef KVCTL_CORE_SAMPLING_H_
#define KVCTL_CORE_SAMPLING_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "core/law.h"
#include "core/rng.h"

namespace kvctl {

/*! \brief The sampling parameters of one request. The defaults leave the softmax as it is. */
struct Sampling {
  double temperature = 1;  //!< 0: the largest logit, the first of equals
  int32_t top_k = 0;       //!< keep the k most likely tokens; 0: all
  double top_p = 1;        //!< then the fewest whose mass reaches top_p of what is left
  double min_p = 0;        //!< then those at least min_p times as likely as the likeliest
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;

  bool truncates() const { return top_k > 0 || top_p < 1 || min_p > 0; }
  bool penalizes() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
  /*! \throws Error kValue for a parameter out of its range. */
  void Check(int32_t vocab_size) const;
};

/*! \brief The element type of logits and probabilities. */
enum class RowType { kFloat32, kFloat16, kBFloat16, kFloat64 };

/*! \brief What a row's law depends on besides the parameters. */
struct RowInput {
  const void* values;                 //!< [vocab] logits, or probabilities
  RowType type = RowType::kFloat32;   //!< kFloat64 for probabilities only
  bool probabilities = false;         //!< the row is a law already and is used as it is
  const uint32_t* bitmask = nullptr;  //!< [ceil(vocab / 32)] bit i of word j allows token 32 j + i
  /*! \brief (token, times seen) over history and path, for penalties. */
  const std::vector<std::pair<int32_t, int32_t>>* counts = nullptr;
};

/*! \brief How a token is chosen from its law. */
enum class Noise {
  kUniform,  //!< inverse CDF, one number per token
  kGumbel,   //!< argmax(log p + G), a number for every token of the vocabulary: what `coupled`
             //!< shares
};

/*!
 * \brief One row: its samples, its law, single probabilities, each at the cost of what was asked
 * for. Holds scratch memory, so one per thread, used again and again.
 */
class RowSampler {
 public:
  explicit RowSampler(const Vocab& vocab) : vocab_(vocab) {}

  /*!
   * \brief Takes a row; it and the parameters must stay until the next Load.
   * \throws Error kValue, here or when first asked for something, if no token is left or
   *   probabilities are not probabilities.
   */
  void Load(const RowInput& row, const Sampling& sampling);

  /*! \brief The token that 64 random bits draw. Reads the row once if nothing truncates it. */
  int32_t Pick(uint64_t bits);
  /*! \brief A token of the row, by the noise of its own position. */
  int32_t Sample(const RandomStream& stream, uint32_t position, Noise noise);
  /*!
   * \brief The n first tokens in the order of Gumbel noise (how coupled siblings are drafted), -1
   * where the support is exhausted.
   */
  void SampleGumbel(const NoiseKey& key, int32_t n, int32_t* tokens);
  /*! \brief The probability of a token. Reads the row once if nothing truncates it. */
  double Prob(int32_t token);
  /*! \brief The law, as grid weights. */
  void FillLaw(Law* law);
  /*! \brief ln of a token's probability; at temperature 0, of its softmax at temperature 1. */
  double LogProb(int32_t token);

 private:
  enum class State {
    kLogits,  // nothing done yet
    kOneHot,  // greedy_
    kFused,   // row_: sums of blocks
    kExps,    // exps_: every exponential, truncated
    kLaw,     // law_
  };

  const float* Logits(const RowInput& row);
  const float* Modified(const float* logits, const RowInput& row, const Sampling& sampling);
  void LoadProbabilities(const RowInput& row, const Sampling& sampling);
  void NeedSums();
  void NeedExps();

  const Vocab& vocab_;
  const Sampling* sampling_ = nullptr;
  State state_ = State::kLogits;
  int32_t greedy_ = -1;
  const float* logits_ = nullptr;
  std::vector<float> scratch_;
  std::vector<float> exps_;
  uint64_t exp_total_ = 0;
  ExpRow row_;
  Law law_;
};

/*! \brief The noise of the token at a position, for Vocab::Gumbel. */
NoiseKey GumbelKey(const RandomStream& stream, uint32_t position);

/*!
 * \brief Zeroes what top-k, top-p and min-p cut off. They keep a prefix of the tokens ordered by
 * weight, equal ones by id.
 * \param exps [size] as from Vocab::Exps, with their integer sum.
 * \return the sum of what is left.
 */
uint64_t Truncate(const Sampling& sampling, int32_t size, uint64_t total, float* exps);

}  // namespace kvctl

#endif  // KVCTL_CORE_SAMPLING_H_
