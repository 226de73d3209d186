/*!
 * \file core/verify/rules/recursive.h
 * \brief Rejection sampling over siblings, from the root down: after a rejection the residual is
 * tried on the next sibling.
 *
 * Independent siblings: Miao et al., "SpecInfer", ASPLOS 2024, Algorithm 2 (multi-step speculative
 * sampling). Siblings without replacement: Chen et al., "Sequoia", NeurIPS 2024, Algorithm 2.
 */
#ifndef KVCTL_CORE_VERIFY_RULES_RECURSIVE_H_
#define KVCTL_CORE_VERIFY_RULES_RECURSIVE_H_

#include <algorithm>

#include "core/verify/tree_verifier.h"

namespace kvctl::rules {

template <typename Rng>
Outcome Recursive(TreeVerifier& verifier, Rng& rng) {
  for (int32_t v = 0;;) {
    if (verifier.ends_at(v)) return {v, -1};
    RowSampler& target = verifier.Target(v);
    Residual& residual = verifier.ResidualAt(v);
    const int32_t first = verifier.first_child(v);
    if (first < 0) return {v, rng.Bonus(target, v)};
    int32_t child = first;
    for (; child >= 0; child = verifier.next_sibling(child)) {
      const DraftDistribution d = verifier.Draft(child);
      const double p = child == first ? target.Prob(d.token) : residual.prob(d.token);
      if (rng.Accept(std::min(1.0, p / d.prob()), child)) break;
      if (child == first) residual.Start(&target);
      residual.Subtract(1.0, d);
    }
    if (child < 0) return {v, rng.SampleResidual(residual, v)};
    v = child;
  }
}

}  // namespace kvctl::rules

#endif  // KVCTL_CORE_VERIFY_RULES_RECURSIVE_H_
