/*!
 * \file kvctl/sampling.h
 * \brief The sampling parameters of a request.
 */
#ifndef KVCTL_SAMPLING_H_
#define KVCTL_SAMPLING_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "kvctl/api.h"

namespace kvctl {

/*!
 * \brief How tokens are sampled from logits. The defaults are the model's own softmax.
 *
 * The parameters apply in this order: logit_bias; the three penalties; the bitmask of the call;
 * temperature; top_k; top_p; min_p. Ties at the edge of top_k and top_p go to the lower token id.
 */
struct Sampling {
  double temperature = 1;  //!< at least 0; 0 takes the largest logit, the first of equals
  int32_t top_k = 0;       //!< keeps the k most likely tokens; 0 keeps all
  double top_p = 1;        //!< then keeps the fewest most likely tokens with this share of the rest
  double min_p = 0;        //!< then keeps tokens at least min_p times as likely as the likeliest
  double repetition_penalty =
      1;  //!< divides positive logits of tokens seen before, multiplies others
  double presence_penalty = 0;   //!< subtracted from the logit of every token seen before
  double frequency_penalty = 0;  //!< subtracted once for each time a token was seen
  std::vector<std::pair<int32_t, float>> logit_bias;  //!< (token, what is added to its logit)
  std::vector<int32_t> stop_tokens;                   //!< output ends with the first of these

  /*! \brief Whether top_k, top_p or min_p may remove tokens. */
  bool truncates() const { return top_k > 0 || top_p < 1 || min_p > 0; }
  /*! \brief Whether a penalty is set, so that tokens seen before must be counted. */
  bool penalizes() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
  /*!
   * \throws Error kValue for a parameter out of its range; kIndex for a logit_bias of a token that
   * is not in the vocabulary.
   */
  KVCTL_API void Check(int32_t vocab_size) const;
};

}  // namespace kvctl

#endif  // KVCTL_SAMPLING_H_
