/*!
 * \file core/sampling/sampling.h
 * \brief Turns a row of logits into the distribution that tokens are sampled from.
 *
 * In this order: logit bias; repetition, presence and frequency penalties; bitmask; temperature;
 * top-k; top-p; min-p. NaN counts as -inf; where a logit is +inf, or so large that its exponent
 * means nothing, the tokens with the largest logit share the row equally. A row with no token above
 * -inf is an error.
 */
#ifndef KVCTL_CORE_SAMPLING_SAMPLING_H_
#define KVCTL_CORE_SAMPLING_SAMPLING_H_

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "core/sampling/cut.h"
#include "core/sampling/distribution.h"
#include "core/sampling/logit_row.h"
#include "core/sampling/softmax_row.h"
#include "core/support/exact_math.h"
#include "core/support/rng.h"
#include "kvctl/dtype.h"
#include "kvctl/sampling.h"

namespace kvctl {

/*! \brief One row to sample from, besides the parameters. */
struct RowInput {
  const void* values;                 //!< [vocab] logits, or probabilities
  DType type = DType::kFloat32;       //!< kFloat64 for probabilities only
  bool probabilities = false;         //!< the values are a distribution, used as it is
  const uint32_t* bitmask = nullptr;  //!< [ceil(vocab / 32)] bit i of word j allows token 32 j + i
  /*! \brief (token, times seen) over history and path, for penalties. */
  const std::vector<std::pair<int32_t, int32_t>>* counts = nullptr;
};

/*! \brief How a token is chosen from its distribution. */
enum class Noise {
  kUniform,  //!< inverse CDF, one number per token
  kGumbel,   //!< argmax(log p + G), one number for every token; coupled drafts use it too
};

/*! \brief Writes the exponentials of tokens [at, at + n). */
using ExpPieces = std::function<void(int32_t at, int32_t n, float* out)>;

/*!
 * \brief Finds which tokens top-k, top-p and min-p keep: a prefix of the tokens in order of weight,
 * equal weights in order of id.
 * \param total the sum of the integer weights of all [size] exponentials.
 */
Cut FindCut(const Sampling& sampling, int32_t size, uint64_t total, const ExpPieces& exps);

/*!
 * \brief Samples, probabilities and the distribution of one row. Each call computes only what it
 * needs. The sums of blocks are stored; weights are computed again for each use.
 */
class RowSampler {
 public:
  explicit RowSampler(const VocabContext& vocab) : vocab_(vocab), logits_(vocab.ops()) {}

  /*!
   * \brief Takes a row; it and the parameters must stay until the next Load.
   * \throws Error kValue, here or in a later call, if no token has a weight or the given
   *   probabilities are no distribution.
   */
  void Load(const RowInput& row, const Sampling& sampling);

  /*! \brief The token that 64 random bits draw. Reads the row once if nothing truncates it. */
  int32_t SampleToken(uint64_t bits);
  /*! \brief Samples a token with the noise of its position. */
  int32_t Sample(const RandomStream& stream, uint32_t position, Noise noise);
  /*!
   * \brief The first n tokens in order of log p + G, as coupled siblings are drafted; -1 after the
   * end of the support.
   */
  void SampleGumbel(const NoiseKey& key, int32_t n, int32_t* tokens);
  /*! \brief The probability of a token. Reads the row once if nothing truncates it. */
  double Prob(int32_t token);
  /*! \brief ln of a token's probability; at temperature 0, of its softmax at temperature 1. */
  double LogProb(int32_t token);

  /*! \brief Computes what Weights and total need. */
  void NeedWeights();
  /*! \brief The sum of all grid weights, up to the rounding of each; after NeedWeights. */
  double total() const { return kind_ == Kind::kDistribution ? distribution_.total : kProbScale; }
  /*!
   * \brief Grid weights of tokens [at, at + n), a piece of a block; returns their sum. May be
   * called from several threads.
   * \param out [n] or nullptr
   */
  double Weights(int32_t at, int32_t n, double* out) const;
  /*!
   * \brief Weights, for relu(a * r - b * q).
   * \param probs [vocab] the distribution q.
   * \param out [n] or nullptr
   */
  double WeightsLess(const float* probs, double a, double b, int32_t at, int32_t n,
                     double* out) const;
  /*! \brief The distribution, as grid weights. */
  void FillDistribution(Distribution* distribution);

 private:
  enum class Kind { kLogits, kOneHot, kDistribution };

  void LoadProbabilities(const RowInput& row, const Sampling& sampling);
  bool NeedSums();
  void NeedExps();
  void ExpPiece(int32_t at, int32_t n, float* out) const;
  uint64_t SumExps();

  const VocabContext& vocab_;
  const Sampling* sampling_ = nullptr;
  Kind kind_ = Kind::kLogits;
  int32_t greedy_ = -1;  // kOneHot
  bool has_logits_ = false;
  LogitRow logits_;
  Distribution distribution_;  // kDistribution

  bool summed_ = false;  // whether row_ was computed
  bool fused_ = false;   // whether samples and single probabilities use row_
  SoftmaxRow row_;

  bool has_exps_ = false;  // whether the members below are known
  ExpGrid grid_ = {};      // the grid of every exponential
  float shared_max_ = 0;   // if shared_: the tokens with this logit share the row
  bool shared_ = false;
  bool cut_off_ = false;
  Cut cut_;
  uint64_t exp_total_ = 0;          // sum of the exponentials, if row_ does not have it
  std::vector<uint64_t> exp_sums_;  // [blocks]
};

/*! \brief The key of the Gumbel noise of the token at a position. */
NoiseKey GumbelKey(const RandomStream& stream, uint32_t position);

}  // namespace kvctl

#endif  // KVCTL_CORE_SAMPLING_SAMPLING_H_
