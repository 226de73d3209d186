/*!
 * \file core/sampling/cut.h
 * \brief What decides which tokens top-k, top-p and min-p keep, and what penalties make of a logit:
 * one source for the CPU and for CUDA.
 */
#ifndef KVCTL_CORE_SAMPLING_CUT_H_
#define KVCTL_CORE_SAMPLING_CUT_H_

#include <cstdint>
#include <cstring>

#include "core/support/exact_math.h"
#include "core/support/host_device.h"

namespace kvctl {

/*! \brief Which tokens top-k, top-p and min-p keep: a prefix of the tokens in order of weight,
 * equal weights in order of id. */
struct Cut {
  float exp = 0;      //!< the least exponential kept
  int32_t token = 0;  //!< the last id kept among tokens with that exponential
  double least = 0;   //!< the least integer weight kept (min-p)

  KVCTL_HD bool keeps(float e, int32_t id) const {
    return (e > exp || (e == exp && id <= token)) &&
           (least == 0 || static_cast<double>(ToFixed(e)) >= least);
  }
};

/*! \brief Whether an exponential has a weight: what rounds to 0 or to an even 0 has none. */
static KVCTL_HD inline bool HasWeight(float exp) { return exp > 0.5f; }

/*! \brief The bits of an exponential. Exponentials are positive, so they are in the order of their
 * bits. */
static KVCTL_HD inline uint32_t ExpBits(float exp) {
  uint32_t bits;
  std::memcpy(&bits, &exp, sizeof(bits));
  return bits;
}

/*! \brief What the shortest prefix that is kept must have: at least `count` tokens or at least
 * `mass`, whichever comes first. */
struct PrefixGoal {
  int64_t count;
  double mass;

  KVCTL_HD bool IsMetBy(int64_t tokens, uint64_t weight) const {
    return tokens >= count || static_cast<double>(weight) >= mass;
  }
};

/*! \brief The penalties of a request. */
struct Penalties {
  double repetition, presence, frequency;
};

/*! \brief The logit of a token that was seen `count` times. */
static KVCTL_HD inline float Penalize(float value, int32_t count, const Penalties& penalties) {
  double logit = value;
  logit = logit > 0 ? logit / penalties.repetition : logit * penalties.repetition;
  logit -= penalties.presence;
  logit -= penalties.frequency * count;
  return static_cast<float>(logit);
}

}  // namespace kvctl

#endif  // KVCTL_CORE_SAMPLING_CUT_H_
