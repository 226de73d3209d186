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

#include "core/verify/round.h"

namespace kvctl::rules {

template <typename Rng>
Outcome TokenWise(Round& round, Rng& rng) {
  for (int32_t v = 0;;) {
    RowSampler& target = round.Target(v);
    const int32_t child = round.first_child(v);
    if (child < 0) return {v, rng.Bonus(target, v)};
    const DraftDistribution d = round.Draft(child);
    if (!rng.Accept(std::min(1.0, target.Prob(d.token) / d.prob()), child)) {
      Residual& left = round.Left(v);
      left.Start(&target);
      left.Subtract(1.0, d);
      return {v, rng.Residual(left, v)};
    }
    v = child;
  }
}

}  // namespace kvctl::rules

#endif  // KVCTL_CORE_VERIFY_RULES_TOKEN_WISE_H_
