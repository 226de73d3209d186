/*!
 * \file core/verify/rules.h
 * \brief Checks a rule against a drafted tree, and runs it with random numbers.
 */
#ifndef KVCTL_CORE_VERIFY_RULES_H_
#define KVCTL_CORE_VERIFY_RULES_H_

#include "core/support/rng.h"
#include "core/verify/rules/best_of_k.h"
#include "core/verify/rules/block.h"
#include "core/verify/rules/recursive.h"
#include "core/verify/rules/target_only.h"
#include "core/verify/rules/token_wise.h"
#include "core/verify/rules/traversal.h"
#include "core/verify/rules/typical.h"
#include "core/verify/tree_verifier.h"
#include "kvctl/error.h"
#include "kvctl/verify.h"

namespace kvctl {

/*!
 * \brief Refuses a rule that would be biased for how the tree was drawn.
 * \throws Error kValue that names a rule which would be lossless.
 */
void CheckRule(Rule rule, const SequenceInput& input);

/*! \brief Decides one sequence. Rng is RoundRandom, or one that replays every branch (enumerate.h).
 */
template <typename Rng>
Outcome RunRule(Rule rule, TreeVerifier& verifier, Rng& rng) {
  switch (rule) {
    case Rule::kGreedy:
    case Rule::kTargetOnly:
    case Rule::kCoupled:
      return rules::TargetOnly(verifier, rng);
    case Rule::kTokenWise:
      return rules::TokenWise(verifier, rng);
    case Rule::kBlock:
      return rules::Block(verifier, rng);
    case Rule::kRecursive:
      return rules::Recursive(verifier, rng);
    case Rule::kTraversal:
      return rules::Traversal(verifier, rng);
    case Rule::kBestOfK:
      return rules::BestOfK(verifier, rng);
    case Rule::kTypical:
      return rules::Typical(verifier, rng);
  }
  Throw(ErrorKind::kInternal, "unknown rule");
}

/*! \brief The random numbers of one round of one request. */
class RoundRandom {
 public:
  RoundRandom(RandomStream stream, uint32_t root_position, Noise noise)
      : stream_(stream), root_position_(root_position), noise_(noise) {}

  /*! \brief Whether a node is accepted. */
  bool Accept(double probability, int32_t node) const;
  /*! \brief False only if Accept is false for every probability up to `at_most`. */
  bool MayAccept(double at_most, int32_t node) const { return Accept(at_most, node); }
  /*! \brief Draws the bonus of a rejection rule after a node, from the target's distribution. */
  int32_t Bonus(RowSampler& target, int32_t node) const;
  /*! \brief Draws the bonus of a rejection rule after a node, from a residual. */
  int32_t SampleResidual(Residual& residual, int32_t node) const;
  /*! \brief Samples the target after a node, with the noise of the token's position, as plain
   * sampling does. */
  int32_t Token(TreeVerifier& verifier, int32_t node) const;

 private:
  RandomStream stream_;
  uint32_t root_position_;
  Noise noise_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_VERIFY_RULES_H_
