/*!
 * \file core/verify/rules/typical.h
 * \brief Typical acceptance: lossy. Accepts what the target finds plausible enough.
 *
 * Cai et al., "Medusa", ICML 2024, section 2.3.1: accept x iff p(x) > min(epsilon, delta *
 * exp(-H(p))). The longest accepted path wins, the likelier of equally long ones, then the one
 * listed first.
 */
#ifndef KVCTL_CORE_VERIFY_RULES_TYPICAL_H_
#define KVCTL_CORE_VERIFY_RULES_TYPICAL_H_

#include <limits>
#include <vector>

#include "core/support/exact_math.h"
#include "core/verify/tree_verifier.h"

namespace kvctl::rules {

/*! \brief Entropy in nats, from integer terms: the same on every machine. */
inline double Entropy(const Distribution& distribution) {
  double sum = 0;
  for (double weight : distribution.weights) {
    if (weight == 0) continue;
    const double p = weight / distribution.total;
    const double term = p * -ExactLog(p) * 0x1p45;  // the sum is at most ln(2^19) * 2^45 < 2^49
    sum += (term + kRoundDouble) - kRoundDouble;
  }
  return sum * 0x1p-45;
}

template <typename Rng>
Outcome Typical(TreeVerifier& verifier, Rng& rng) {
  struct Reached {
    int32_t node;
    double log_prob;
  };
  // p > delta * exp(-entropy) by logarithms, which are the same on every machine.
  const double epsilon = verifier.input().epsilon, delta = verifier.input().delta;
  const double log_delta = delta > 0 ? ExactLog(delta) : -std::numeric_limits<double>::infinity();
  Distribution p;
  std::vector<Reached> todo = {{0, 0.0}};
  Reached best = todo[0];
  for (size_t at = 0; at < todo.size(); ++at) {  // breadth first: node order within a depth
    const Reached v = todo[at];
    if (verifier.depth(v.node) > verifier.depth(best.node) || v.log_prob > best.log_prob) {
      if (verifier.depth(v.node) >= verifier.depth(best.node)) best = v;
    }
    if (verifier.first_child(v.node) < 0) continue;
    verifier.Target(v.node).FillDistribution(&p);
    const double least = log_delta - Entropy(p);
    for (int32_t c = verifier.first_child(v.node); c >= 0; c = verifier.next_sibling(c)) {
      const double prob = p.prob(verifier.token(c));
      if (!(prob > 0)) continue;
      const double log_prob = ExactLog(prob);
      if (prob > epsilon || log_prob > least) todo.push_back({c, v.log_prob + log_prob});
    }
  }
  if (verifier.ends_at(best.node)) return {best.node, -1};
  return {best.node, rng.Bonus(verifier.Target(best.node), best.node)};
}

}  // namespace kvctl::rules

#endif  // KVCTL_CORE_VERIFY_RULES_TYPICAL_H_
