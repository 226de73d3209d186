/*!
 * \file core/rules/traversal.h
 * \brief Traversal verification of a tree: leaves first, so that a whole path can be accepted where
 * its first token alone would have been rejected.
 *
 * Weng et al., "Traversal verification for speculative tree decoding", arXiv 2505.12398. On a chain
 * it emits the same law as block verification.
 */
#ifndef KVCTL_CORE_RULES_TRAVERSAL_H_
#define KVCTL_CORE_RULES_TRAVERSAL_H_

#include <algorithm>

#include "core/round.h"
#include "core/rules/block.h"

namespace kvctl::rules {

/*! \return an Outcome whose node is -1 if nothing below or at v was accepted. */
template <typename Rng>
Outcome TraverseFrom(Round& round, Rng& rng, int32_t v, double a) {
  Residual& left = round.Left(v);
  const int32_t first = round.first_child(v);
  for (int32_t child = first; child >= 0; child = round.next_sibling(child)) {
    const DraftLaw d = round.Draft(child);
    const double p = child == first ? round.Target(v).Prob(d.token) : left.prob(d.token);
    const double reach = std::min(1.0, a * (p / d.prob()));
    if (reach > 0) {  // otherwise nothing below can be accepted
      const Outcome below = TraverseFrom(round, rng, child, reach);
      if (below.node >= 0) return below;
    }
    // Subtracting lessens a: often it need not be known by how much.
    if (v > 0 && round.next_sibling(child) < 0 && !rng.MayAccept(a, v)) return {-1, -1};
    if (child == first) left.Start(&round.Target(v));
    a = AcceptRatio(left.Subtract(a, d), a);
  }
  if (v > 0 && !rng.Accept(a, v)) return {-1, -1};
  if (first < 0) return {v, rng.Bonus(round.Target(v), v)};
  return {v, rng.Residual(left, v)};
}

template <typename Rng>
Outcome Traversal(Round& round, Rng& rng) {
  return TraverseFrom(round, rng, 0, 1.0);
}

}  // namespace kvctl::rules

#endif  // KVCTL_CORE_RULES_TRAVERSAL_H_
