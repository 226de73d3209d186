/*!
 * \file core/verify/rules/block.h
 * \brief Block verification of a chain: accepts the longest prefix that the joint distribution
 * allows.
 *
 * Sun et al., "Block verification accelerates speculative decoding", arXiv 2403.10444. Never
 * accepts fewer tokens in expectation than token by token. Chains only.
 */
#ifndef KVCTL_CORE_VERIFY_RULES_BLOCK_H_
#define KVCTL_CORE_VERIFY_RULES_BLOCK_H_

#include <algorithm>
#include <vector>

#include "core/verify/tree_verifier.h"

namespace kvctl::rules {

/*!
 * \brief The probability of stopping at a node that is reached with probability a and whose
 * residual has mass s: s / (s + 1 - a), at most a, and 1 for 0 / 0.
 */
inline double AcceptRatio(double s, double a) {
  const double denominator = s + (1.0 - a);
  return denominator > 0 ? std::min(a, s / denominator) : 1.0;
}

/*!
 * \brief Block verification along a path of nodes below the root, each the child of the one before.
 *
 * The path ends at a leaf or at a stop token. Ending there changes no distribution: behind a stop
 * both target and draft could be said to hold an end token with probability 1, and with such
 * tokens appended the same prefixes are accepted.
 *
 * \param path the nodes; path[i] is read after draft(i) was first called, which may fill it in.
 * \param draft (i) -> the distribution that path[i] was drawn from. Called for i = 0, 1, ... in
 * order, and again for each i looked at backward.
 */
template <typename Rng, typename DraftOf>
Outcome BlockAlong(TreeVerifier& verifier, Rng& rng, const std::vector<int32_t>& path,
                   DraftOf draft) {
  const auto node = [&](int32_t i) { return i == 0 ? 0 : path[i - 1]; };
  const auto more = [&](int32_t i) { return verifier.first_child(node(i)) >= 0; };
  std::vector<double> a = {1.0};
  int32_t last = 0;  // nothing after a token of probability 0 can be accepted
  for (; more(last); ++last) {
    const DraftDistribution d = draft(last);
    const double p = verifier.Target(node(last)).Prob(d.token);
    a.push_back(std::min(1.0, a[last] * (p / d.prob())));
    if (!(a.back() > 0)) break;
  }
  const bool whole = !more(last);
  if (whole && rng.Accept(a[last], node(last))) {
    if (verifier.ends_at(node(last))) return {node(last), -1};
    return {node(last), rng.Bonus(verifier.Target(node(last)), node(last))};
  }
  for (int32_t i = whole ? last - 1 : last;; --i) {
    // The acceptance probability is at most a. This often decides without computing s.
    if (i > 0 && !rng.MayAccept(a[i], node(i))) continue;
    Residual& residual = verifier.ResidualAt(node(i));
    residual.Start(&verifier.Target(node(i)));
    const double s = residual.Subtract(a[i], draft(i));
    if (i == 0 || rng.Accept(AcceptRatio(s, a[i]), node(i))) {
      return {node(i), rng.SampleResidual(residual, node(i))};
    }
  }
}

template <typename Rng>
Outcome Block(TreeVerifier& verifier, Rng& rng) {
  std::vector<int32_t> path;
  for (int32_t v = verifier.first_child(0); v >= 0; v = verifier.first_child(v)) path.push_back(v);
  return BlockAlong(verifier, rng, path, [&](int32_t i) { return verifier.Draft(path[i]); });
}

}  // namespace kvctl::rules

#endif  // KVCTL_CORE_VERIFY_RULES_BLOCK_H_
