#include "core/verify/rules.h"

#include <algorithm>

#include "core/support/exact_math.h"

namespace kvctl {
namespace {

// The first node after which the tree branches, or -1.
int32_t FirstBranch(const SequenceInput& input) {
  std::vector<bool> has_child(input.size, false);
  for (int32_t i = 1; i < input.size; ++i) {
    if (has_child[input.parents[i]]) return input.parents[i];
    has_child[input.parents[i]] = true;
  }
  return -1;
}

// Whether the tree is made of paths of one length that branch at the root.
bool IsPaths(const SequenceInput& input) {
  std::vector<int32_t> depth(input.size, 0), children(input.size, 0);
  int32_t longest = 0;
  for (int32_t i = 1; i < input.size; ++i) {
    depth[i] = depth[input.parents[i]] + 1;
    longest = std::max(longest, depth[i]);
    ++children[input.parents[i]];
  }
  for (int32_t i = 1; i < input.size; ++i) {
    if (children[i] != (depth[i] < longest ? 1 : 0)) return false;
  }
  return true;
}

}  // namespace

const char* RuleName(Rule rule) {
  static const char* const kNames[kNumRules] = {"greedy",    "target_only", "token_wise",
                                                "block",     "recursive",   "traversal",
                                                "best_of_k", "coupled",     "typical"};
  return kNames[static_cast<int>(rule)];
}

const char* DrawnName(Drawn drawn) {
  static const char* const kNames[] = {"deterministic", "independent", "without_replacement",
                                       "coupled"};
  return kNames[static_cast<int>(drawn)];
}

void CheckRule(Rule rule, const SequenceInput& input) {
  if (rule == Rule::kGreedy && input.sampling->temperature != 0) {
    Throw(ErrorKind::kValue, "rule 'greedy' is lossless only at temperature 0, got temperature ",
          input.sampling->temperature, ": use 'target_only', which is greedy at temperature 0");
  }
  const bool follows_target =
      rule == Rule::kGreedy || rule == Rule::kTargetOnly || rule == Rule::kCoupled;
  if (follows_target || rule == Rule::kTypical) return;

  if (rule == Rule::kTokenWise || rule == Rule::kBlock) {
    const int32_t branch = FirstBranch(input);
    if (branch >= 0) {
      Throw(ErrorKind::kValue, "rule '", RuleName(rule), "' is for chains, but node ", branch,
            " has several children: use 'recursive', 'traversal' or 'target_only'");
    }
  }
  for (int32_t i = 1; i < input.size; ++i) {
    const Drawn drawn = input.drawn[i];
    if (drawn == Drawn::kCoupled) {
      Throw(ErrorKind::kValue, "rule '", RuleName(rule), "' is biased for drawn='coupled' (node ",
            i,
            "): the noise of a rejected token would be used again: use 'coupled' or 'target_only'");
    }
    if (rule == Rule::kBestOfK && drawn != Drawn::kIndependent) {
      Throw(ErrorKind::kValue,
            "rule 'best_of_k' is lossless only for drawn='independent', but node ", i, " is '",
            DrawnName(drawn), "': use 'recursive', 'traversal' or 'target_only'");
    }
  }
  if (rule == Rule::kBestOfK && !IsPaths(input)) {
    Throw(ErrorKind::kValue, "rule 'best_of_k' needs paths of one length that branch at the root ",
          "alone: use 'recursive', 'traversal' or 'target_only'");
  }
}

bool RoundRandom::Accept(double probability, int32_t node) const {
  return Uniform(stream_.Bits(Purpose::kAccept, root_position_, static_cast<uint32_t>(node))) <
         probability;
}

int32_t RoundRandom::Bonus(RowSampler& target, int32_t node) const {
  return target.SampleToken(
      stream_.Bits(Purpose::kResidual, root_position_, static_cast<uint32_t>(node)));
}

int32_t RoundRandom::SampleResidual(Residual& residual, int32_t node) const {
  return residual.SampleToken(
      stream_.Bits(Purpose::kResidual, root_position_, static_cast<uint32_t>(node)));
}

int32_t RoundRandom::Token(TreeVerifier& verifier, int32_t node) const {
  const uint32_t position = root_position_ + 1 + static_cast<uint32_t>(verifier.depth(node));
  return verifier.Target(node).Sample(stream_, position, noise_);
}

}  // namespace kvctl
