/*!
 * \file core/verify/rules/target_only.h
 * \brief Samples from the target and follows the tree as long as it holds what was sampled.
 *
 * Lossless however the tree was drafted, because the draft decides only how far one forward
 * reaches. At temperature 0 this is greedy verification. With the Gumbel noise that also drew the
 * draft it is coupled verification (Daliri, Musco, Suresh, "Coupling without communication and
 * drafter-invariant speculative decoding", arXiv 2408.07978).
 */
#ifndef KVCTL_CORE_VERIFY_RULES_TARGET_ONLY_H_
#define KVCTL_CORE_VERIFY_RULES_TARGET_ONLY_H_

#include "core/verify/round.h"

namespace kvctl::rules {

template <typename Rng>
Outcome TargetOnly(Round& round, Rng& rng) {
  int32_t v = 0;
  for (;;) {
    const int32_t y = rng.Token(round, v);
    int32_t child = round.first_child(v);
    while (child >= 0 && round.token(child) != y) child = round.next_sibling(child);
    if (child < 0) return {v, y};
    v = child;
  }
}

}  // namespace kvctl::rules

#endif  // KVCTL_CORE_VERIFY_RULES_TARGET_ONLY_H_
