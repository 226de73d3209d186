/*!
 * \file core/verify/rules/traversal.h
 * \brief Traversal verification of a tree: leaves first, so that a whole path can be accepted where
 * its first token alone would have been rejected.
 *
 * Weng et al., "Traversal verification for speculative tree decoding", arXiv 2505.12398. On a chain
 * it emits the same distribution as block verification.
 */
#ifndef KVCTL_CORE_VERIFY_RULES_TRAVERSAL_H_
#define KVCTL_CORE_VERIFY_RULES_TRAVERSAL_H_

#include <algorithm>
#include <vector>

#include "core/verify/rules/block.h"
#include "core/verify/tree_verifier.h"

namespace kvctl::rules {

template <typename Rng>
Outcome Traversal(TreeVerifier& verifier, Rng& rng) {
  // A node whose children are being visited: `child` is the next, reached with probability a.
  struct Visit {
    int32_t node;
    double a;
    int32_t child;
  };
  std::vector<Visit> path = {{0, 1.0, verifier.first_child(0)}};
  bool below_rejected = false;  // whether the child and its subtree were rejected
  for (;;) {
    Visit& visit = path.back();
    const int32_t v = visit.node, child = visit.child;
    const bool first = child == verifier.first_child(v);
    Residual& residual = verifier.ResidualAt(v);
    if (child < 0) {
      if (v == 0 || rng.Accept(visit.a, v)) {
        if (verifier.ends_at(v)) return {v, -1};
        return {v, first ? rng.Bonus(verifier.Target(v), v) : rng.SampleResidual(residual, v)};
      }
      path.pop_back();
      below_rejected = true;
      continue;
    }
    const DraftDistribution d = verifier.Draft(child);
    if (!below_rejected) {
      const double p = first ? verifier.Target(v).Prob(d.token) : residual.prob(d.token);
      const double reach = std::min(1.0, visit.a * (p / d.prob()));
      if (reach > 0) {  // otherwise nothing below can be accepted
        path.push_back({child, reach, verifier.first_child(child)});
        continue;
      }
    }
    below_rejected = false;
    visit.child = verifier.next_sibling(child);
    // Subtract lowers a, so a node that a cannot accept needs no subtraction.
    if (v > 0 && visit.child < 0 && !rng.MayAccept(visit.a, v)) {
      path.pop_back();
      below_rejected = true;
      continue;
    }
    if (first) residual.Start(&verifier.Target(v));
    visit.a = AcceptRatio(residual.Subtract(visit.a, d), visit.a);
  }
}

}  // namespace kvctl::rules

#endif  // KVCTL_CORE_VERIFY_RULES_TRAVERSAL_H_
