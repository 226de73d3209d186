/*!
 * \file core/verify/rules/target_only.h
 * \brief Samples from the target and follows the tree as long as it holds what was sampled.
 *
 * It is lossless for any draft, because the draft decides only how many tokens one forward emits.
 * At temperature 0 this is greedy verification. With the Gumbel noise that also drew the draft it
 * is coupled verification (Daliri, Musco, Suresh, "Coupling without communication and
 * drafter-invariant speculative decoding", arXiv 2408.07978).
 */
#ifndef KVCTL_CORE_VERIFY_RULES_TARGET_ONLY_H_
#define KVCTL_CORE_VERIFY_RULES_TARGET_ONLY_H_

#include "core/verify/tree_verifier.h"

namespace kvctl::rules {

template <typename Rng>
Outcome TargetOnly(TreeVerifier& verifier, Rng& rng) {
  int32_t v = 0;
  for (;;) {
    if (verifier.ends_at(v)) return {v, -1};
    const int32_t y = rng.Token(verifier, v);
    int32_t child = verifier.first_child(v);
    while (child >= 0 && verifier.token(child) != y) child = verifier.next_sibling(child);
    if (child < 0) return {v, y};
    v = child;
  }
}

}  // namespace kvctl::rules

#endif  // KVCTL_CORE_VERIFY_RULES_TARGET_ONLY_H_
