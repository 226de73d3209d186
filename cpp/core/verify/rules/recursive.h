/*!
 * \file core/verify/rules/recursive.h
 * \brief Rejection sampling over siblings, from the root down: each rejected sibling leaves its
 * residual to the next.
 *
 * Independent siblings: Miao et al., "SpecInfer", ASPLOS 2024, Algorithm 2 (multi-step speculative
 * sampling). Siblings without replacement: Chen et al., "Sequoia", NeurIPS 2024, Algorithm 2.
 */
#ifndef KVCTL_CORE_VERIFY_RULES_RECURSIVE_H_
#define KVCTL_CORE_VERIFY_RULES_RECURSIVE_H_

#include <algorithm>

#include "core/verify/round.h"

namespace kvctl::rules {

template <typename Rng>
Outcome Recursive(Round& round, Rng& rng) {
  for (int32_t v = 0;;) {
    RowSampler& target = round.Target(v);
    Residual& left = round.Left(v);
    const int32_t first = round.first_child(v);
    if (first < 0) return {v, rng.Bonus(target, v)};
    int32_t child = first;
    for (; child >= 0; child = round.next_sibling(child)) {
      const DraftDistribution d = round.Draft(child);
      const double p = child == first ? target.Prob(d.token) : left.prob(d.token);
      if (rng.Accept(std::min(1.0, p / d.prob()), child)) break;
      if (child == first) left.Start(&target);
      left.Subtract(1.0, d);
    }
    if (child < 0) return {v, rng.Residual(left, v)};
    v = child;
  }
}

}  // namespace kvctl::rules

#endif  // KVCTL_CORE_VERIFY_RULES_RECURSIVE_H_
