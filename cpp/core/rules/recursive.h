/*!
 * \file core/rules/recursive.h
 * \brief Rejection sampling over siblings, from the root down: each rejected sibling leaves its
 * residual to the next.
 *
 * Independent siblings: Miao et al., "SpecInfer", ASPLOS 2024, Algorithm 2 (multi-step speculative
 * sampling). Siblings without replacement: Chen et al., "Sequoia", NeurIPS 2024, Algorithm 2.
 */
#ifndef KVCTL_CORE_RULES_RECURSIVE_H_
#define KVCTL_CORE_RULES_RECURSIVE_H_

#include <algorithm>

#include "core/round.h"

namespace kvctl::rules {

template <typename Rng>
Outcome Recursive(Round& round, Rng& rng) {
  Level& level = round.level(0);
  for (int32_t v = 0;;) {
    round.Target(v).FillLaw(&level.r);
    int32_t child = round.first_child(v);
    for (; child >= 0; child = round.next_sibling(child)) {
      const DraftLaw d = round.Draft(child, &level);
      const double accept = std::min(1.0, level.r.prob(d.token) / d.prob());
      if (rng.Accept(accept, child)) break;
      round.Subtract(1.0, d, &level);
    }
    if (child < 0) return {v, rng.Residual(round, level.r, v)};
    v = child;
  }
}

}  // namespace kvctl::rules

#endif  // KVCTL_CORE_RULES_RECURSIVE_H_
