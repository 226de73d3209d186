/*!
 * \file core/sampling/vocab_ops.h
 * \brief The loops over a piece of the vocabulary, behind one table per instruction set.
 *
 * All sums are sums of integers, so they do not depend on how a row is split. Entries of the same
 * name in different tables return the same bits for the same input.
 */
#ifndef KVCTL_CORE_SAMPLING_VOCAB_OPS_H_
#define KVCTL_CORE_SAMPLING_VOCAB_OPS_H_

#include <cstdint>

#include "core/support/exact_math.h"

namespace kvctl {

/*! \brief The number of tokens in a block of a row. The sums of a row depend on it. */
constexpr int32_t kVocabBlock = 4096;
/*! \brief The exponent of a block without a finite logit: far below any other. */
constexpr int32_t kEmptyBlock = INT32_MIN / 2;

/*! \brief The key of a position's exponential noise, from which each token id takes its own. */
struct NoiseKey {
  uint32_t key[2];      //!< Philox key
  uint32_t counter[3];  //!< Philox counter words 1..3; word 0 is counter0 + token / 2
  uint32_t counter0;
};

/*! \brief How logits become grid weights: exp_sum's grid, and weights_from_exps' factor. */
struct ExpTerms {
  ExpGrid grid;
  double factor;
};

/*! \brief How logits and a distribution to subtract become grid weights of the residual. */
struct RestTerms {
  ExpGrid grid;
  RestFactors factors;
};

struct VocabOps {
  /*! \brief Largest of n logits; NaN is ignored, and -inf returned if no other is left. */
  float (*max)(const float* logits, int32_t n);
  /*! \brief Index of the first of n logits that equals value, or -1. */
  int32_t (*find)(const float* logits, int32_t n, float value);
  /*! \brief Sets logits[i] to -inf if the bit of token `first + i` is 0, for i in [0, n). */
  void (*mask)(const uint32_t* bits, int32_t first, int32_t n, float* logits);
  /*!
   * \brief Sum of ToFixed(Exp2Scaled(logits[i], grid)); the floats go to exps unless that is null.
   * No logits[i] * scale may exceed the grid's exponent by more than 1/2.
   */
  uint64_t (*exp_sum)(const float* logits, int32_t n, const ExpGrid& grid, float* exps);
  /*!
   * \brief Grid weights from exponentials: round(ToFixed(exps[i]) * factor); returns the sum.
   * Here and below, out may be null.
   */
  double (*weights_from_exps)(const float* exps, int32_t n, double factor, double* out);
  /*! \brief exp_sum's floats and weights_from_exps, in one pass. */
  double (*weights_from_logits)(const float* logits, int32_t n, const ExpTerms& terms, double* out);
  /*! \brief Grid weights from probabilities; returns their sum, NaN if one is not in [0, 1.001]. */
  double (*weights_from_f32)(const float* probs, int32_t n, double* out);
  double (*weights_from_f64)(const double* probs, int32_t n, double* out);
  /*! \brief out[i] = round(max(0, a * r[i] - b * d[i])); returns the sum. out may be r. */
  double (*subtract)(const double* r, const double* d, int32_t n, double a, double b, double* out);
  /*! \brief Grid weights of FixedRest for logits and the probabilities q; returns their sum. */
  double (*rest_from_logits)(const float* logits, const float* q, int32_t n, const RestTerms& terms,
                             double* out);
  /*! \brief IEEE half precision, and bfloat16, to float. */
  void (*from_f16)(const uint16_t* values, int32_t n, float* out);
  void (*from_bf16)(const uint16_t* values, int32_t n, float* out);
  /*!
   * \brief The token with the least E / weight, E being its exponential noise: argmax(log w +
   * Gumbel). Tokens of weight 0 never win; the lower id wins ties. Returns -1 and leaves best alone
   * unless some token is below *best.
   */
  int32_t (*gumbel)(const float* exps, int32_t first_token, int32_t n, const NoiseKey& key,
                    double* best);
};

/*! \brief E / weight for a token of weight above 0: the lowest in a row wins it. */
double GumbelScore(int32_t token, uint64_t weight, const NoiseKey& key);

/*! \brief Plain C++: the reference that every other table must match. */
const VocabOps& ScalarVocabOps();

}  // namespace kvctl

#endif  // KVCTL_CORE_SAMPLING_VOCAB_OPS_H_
