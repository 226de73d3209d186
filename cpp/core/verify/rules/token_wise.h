/*!
 * \file core/verify/rules/token_wise.h
 * \brief Token by token: accept with probability min(1, p / q), else draw from the residual.
 *
 * Leviathan, Kalman, Matias, "Fast inference from transformers via speculative decoding", ICML
 * 2023, Algorithm 1; Chen et al., "Accelerating large language model decoding with speculative
 * sampling", arXiv 2302.01318, Algorithm 2. Chains only.
 */
#ifndef KVCTL_CORE_VERIFY_RULES_TOKEN_WISE_H_
#define KVCTL_CORE_VERIFY_RULES_TOKEN_WISE_H_

#include <algorithm>

#include "core/verify/tree_verifier.h"

namespace kvctl::rules {

template <typename Rng>
Outcome TokenWise(TreeVerifier& verifier, Rng& rng) {
  for (int32_t v = 0;;) {
    if (verifier.ends_at(v)) return {v, -1};
    RowSampler& target = verifier.Target(v);
    const int32_t child = verifier.first_child(v);
    if (child < 0) return {v, rng.Bonus(target, v)};
    const DraftDistribution d = verifier.Draft(child);
    if (!rng.Accept(std::min(1.0, target.Prob(d.token) / d.prob()), child)) {
      Residual& residual = verifier.ResidualAt(v);
      residual.Start(&target);
      residual.Subtract(1.0, d);
      return {v, rng.SampleResidual(residual, v)};
    }
    v = child;
  }
}

}  // namespace kvctl::rules

#endif  // KVCTL_CORE_VERIFY_RULES_TOKEN_WISE_H_
