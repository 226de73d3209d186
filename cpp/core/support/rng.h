/*!
 * \file core/support/rng.h
 * \brief Random numbers keyed by what they decide, never by when or where they are drawn.
 *
 * Every number is a pure function of (seed, request, position, purpose, index). It does not depend
 * on the order or size of a batch, on threads or on the device.
 */
#ifndef KVCTL_CORE_SUPPORT_RNG_H_
#define KVCTL_CORE_SUPPORT_RNG_H_

#include <cstdint>

#include "core/support/philox.h"

namespace kvctl {

/*! \brief The purpose of a number. Two purposes never share a number: one uniform for both
 * acceptance and the residual draw is biased, and so is one noise for both the draft and the
 * residual draw. */
enum class Purpose : uint32_t {
  kAccept = 0,    //!< whether a drafted token is accepted; index: its node
  kResidual = 1,  //!< the bonus of a rejection rule; index: the node it follows
  kDraft = 2,     //!< drafting; index: the node drawn
  kToken = 3,   //!< a token sampled from its distribution by inverse CDF; position: the token's own
  kGumbel = 4,  //!< exponential noise of a token; position: the token's own; index: vocabulary / 2
};

/*!
 * \brief The random numbers of one request.
 *
 * Numbers of a round (kAccept, kResidual, kDraft) are keyed by the position of the round's root,
 * which grows from round to round. Keyed by the position of the token they concern they would be
 * biased: rules that look beyond the accepted prefix condition numbers that the next round would
 * use again. kToken and kGumbel are keyed by the token's own position, and so are the same whether
 * it is sampled plainly or while verifying.
 */
struct RandomStream {
  uint64_t seed;
  uint64_t request;

  KVCTL_HD std::array<uint32_t, 4> Words(Purpose purpose, uint32_t position, uint32_t index) const {
    return Philox4x32({(static_cast<uint32_t>(purpose) << 28) | (index & 0x0fffffffu), position,
                       static_cast<uint32_t>(request), static_cast<uint32_t>(request >> 32)},
                      static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  }
  KVCTL_HD uint64_t Bits(Purpose purpose, uint32_t position, uint32_t index) const {
    const std::array<uint32_t, 4> words = Words(purpose, position, index);
    return (static_cast<uint64_t>(words[1]) << 32) | words[0];
  }
};

}  // namespace kvctl

#endif  // KVCTL_CORE_SUPPORT_RNG_H_
