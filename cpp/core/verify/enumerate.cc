#include "core/verify/enumerate.h"

#include <utility>

#include "kvctl/error.h"

namespace kvctl {
namespace {

// A branch assumes that the target's samples do not depend on the tree. With coupled drafts they
// do.
void CheckInput(Rule rule, const SequenceInput& input, bool check) {
  if (check) CheckRule(rule, input);
  for (int32_t i = 1; i < input.size; ++i) {
    if (input.drawn[i] != Drawn::kCoupled) continue;
    Throw(ErrorKind::kValue, "node ", i, " was drawn='coupled', from the noise that the target is ",
          "sampled with: given such a tree the outcome is not random, so there is nothing to ",
          "enumerate or replay exactly; count rounds of kvctl.verify instead (AcceptanceStats)");
  }
}

}  // namespace

int32_t ReplayRng::Choose(std::vector<std::pair<int32_t, double>> options) {
  if (at_ == choices_.size()) {
    choices_.emplace_back();
    choices_.back().options = std::move(options);
  }
  const Choice& choice = choices_[at_++];
  return choice.options[choice.current].first;
}

int32_t ReplayRng::Choose(const Distribution& distribution) {
  std::vector<std::pair<int32_t, double>> options;
  for (size_t x = 0; x < distribution.weights.size(); ++x) {
    if (distribution.weights[x] > 0) {
      options.emplace_back(static_cast<int32_t>(x), distribution.prob(static_cast<int32_t>(x)));
    }
  }
  return Choose(std::move(options));
}

bool ReplayRng::Accept(double probability, int32_t) {
  std::vector<std::pair<int32_t, double>> options;
  if (probability > 0) options.emplace_back(1, probability);
  if (probability < 1) options.emplace_back(0, 1 - probability);
  return Choose(std::move(options)) == 1;
}

int32_t ReplayRng::Bonus(RowSampler& target, int32_t) {
  if (nodes_only_) return -1;
  Distribution distribution;
  target.FillDistribution(&distribution);
  return Choose(distribution);
}

int32_t ReplayRng::SampleResidual(Residual& residual, int32_t) {
  if (nodes_only_) return -1;
  Distribution distribution;
  residual.FillDistribution(&distribution);
  return Choose(distribution);
}

int32_t ReplayRng::Token(TreeVerifier& verifier, int32_t node) {
  Distribution distribution;
  verifier.Target(node).FillDistribution(&distribution);
  if (!nodes_only_) return Choose(distribution);
  std::vector<std::pair<int32_t, double>> options;
  double rest = distribution.total;
  for (int32_t c = verifier.first_child(node); c >= 0; c = verifier.next_sibling(c)) {
    const double weight = distribution.weights[verifier.token(c)];
    if (weight == 0) continue;
    options.emplace_back(verifier.token(c), weight / distribution.total);
    rest -= weight;
    distribution.weights[verifier.token(c)] = 0;  // count a token that siblings share once
  }
  if (rest > 0) options.emplace_back(-1, rest / distribution.total);
  return Choose(std::move(options));
}

double ReplayRng::probability() const {
  double product = 1;
  for (size_t i = 0; i < at_; ++i) product *= choices_[i].options[choices_[i].current].second;
  return product;
}

bool ReplayRng::Next() {
  at_ = 0;
  while (!choices_.empty()) {
    Choice& last = choices_.back();
    if (++last.current < last.options.size()) return true;
    choices_.pop_back();
  }
  return false;
}

std::vector<WeightedOutcome> Enumerate(Rule rule, const VocabContext& vocab,
                                       const SequenceInput& input, bool check) {
  CheckInput(rule, input, check);
  TreeVerifier verifier(vocab);
  ReplayRng rng;
  std::vector<WeightedOutcome> outcomes;
  do {
    verifier.Start(input);
    const Outcome outcome = RunRule(rule, verifier, rng);
    outcomes.push_back({rng.probability(), outcome});
  } while (rng.Next());
  return outcomes;
}

std::vector<double> LastAccepted(Rule rule, const VocabContext& vocab, const SequenceInput& input,
                                 bool check) {
  CheckInput(rule, input, check);
  TreeVerifier verifier(vocab);
  ReplayRng rng;
  rng.nodes_only_ = true;
  std::vector<double> probabilities(input.size, 0.0);
  do {
    verifier.Start(input);
    const Outcome outcome = RunRule(rule, verifier, rng);
    probabilities[outcome.node] += rng.probability();
  } while (rng.Next());
  return probabilities;
}

}  // namespace kvctl
