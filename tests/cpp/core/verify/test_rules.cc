// Every shipped rule, enumerated: over all drafts and all outcomes the emitted distribution is the
// target's.
#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "core/verify/rules.h"
#include "joint_distribution.h"

using joint::Enumerator;
using joint::Models;
using joint::Result;
using joint::Tokens;
using kvctl::Drawn;
using kvctl::Rule;

namespace {

constexpr double kTolerance = 1e-12;

struct Combination {
  Rule rule;
  Drawn drawn;
  bool chains_only;
};

const std::vector<Combination>& Lossless() {
  static const std::vector<Combination> combinations = {
      {Rule::kTargetOnly, Drawn::kDeterministic, false},
      {Rule::kTargetOnly, Drawn::kIndependent, false},
      {Rule::kTargetOnly, Drawn::kWithoutReplacement, false},
      {Rule::kTokenWise, Drawn::kDeterministic, true},
      {Rule::kTokenWise, Drawn::kIndependent, true},
      {Rule::kBlock, Drawn::kDeterministic, true},
      {Rule::kBlock, Drawn::kIndependent, true},
      {Rule::kRecursive, Drawn::kDeterministic, false},
      {Rule::kRecursive, Drawn::kIndependent, false},
      {Rule::kRecursive, Drawn::kWithoutReplacement, false},
      {Rule::kTraversal, Drawn::kDeterministic, false},
      {Rule::kTraversal, Drawn::kIndependent, false},
      {Rule::kTraversal, Drawn::kWithoutReplacement, false},
  };
  return combinations;
}

void ExpectLossless(Models& models, const Combination& c, const Tokens& shape) {
  const Result result = Enumerator(models, c.rule, c.drawn, shape).Run();
  const double difference =
      joint::MaxDifference(result.distribution, joint::TargetDistribution(models));
  if (difference > kTolerance || std::fabs(result.coverage - 1) > kTolerance) {
    std::ostringstream what;
    what << kvctl::RuleName(c.rule) << " / " << kvctl::DrawnName(c.drawn) << " on parents";
    for (int32_t parent : shape) what << " " << parent;
    what << ": distribution is off by " << difference << ", probabilities sum to "
         << result.coverage;
    check::Fail(__FILE__, __LINE__, what.str());
  }
}

void EnumerateAll(int vocab, int max_nodes, int cases) {
  for (int nodes = 1; nodes <= max_nodes + 1; ++nodes) {
    unsigned seed = 1000 * vocab;
    for (const Tokens& shape : joint::Shapes(nodes)) {
      for (int i = 0; i < cases; ++i) {
        Models models(vocab, ++seed);
        for (const Combination& c : Lossless()) {
          if (!c.chains_only || joint::IsChain(shape)) ExpectLossless(models, c, shape);
        }
      }
    }
  }
}

/*! \brief RoundRandom that rules nothing out early, and counts how often it might have. */
class Patient : public kvctl::RoundRandom {
 public:
  using kvctl::RoundRandom::RoundRandom;
  bool MayAccept(double at_most, int32_t node) {
    spared += kvctl::RoundRandom::MayAccept(at_most, node) ? 0 : 1;
    return true;
  }
  int spared = 0;
};

std::vector<double> RandomDistribution(std::mt19937& random, int size) {
  std::vector<double> distribution(size);
  double sum = 0;
  for (double& p : distribution) sum += p = std::exponential_distribution<double>(1)(random);
  for (double& p : distribution) p /= sum;
  return distribution;
}

// K paths of one length from the root, breadth first.
Tokens Paths(int k, int length) {
  Tokens shape(1 + k * length);
  for (int i = 0; i < static_cast<int>(shape.size()); ++i) {
    shape[i] = i == 0 ? -1 : std::max(0, i - k);
  }
  return shape;
}

}  // namespace

TEST(EveryTreeOfUpToFourNodesIsLosslessAtThreeTokens) { EnumerateAll(3, 4, 6); }
TEST(EveryTreeOfFiveNodesIsLosslessAtThreeTokens) {
  unsigned seed = 7;
  for (const Tokens& shape : joint::Shapes(6)) {
    Models models(3, ++seed);
    for (const Combination& c : Lossless()) {
      if (!c.chains_only || joint::IsChain(shape)) ExpectLossless(models, c, shape);
    }
  }
}
TEST(EveryTreeOfUpToFourNodesIsLosslessAtFourTokens) { EnumerateAll(4, 4, 3); }
TEST(EveryTreeOfUpToFourNodesIsLosslessAtFiveTokens) { EnumerateAll(5, 4, 3); }

TEST(BestOfKIsLossless) {
  for (unsigned seed = 0; seed < 12; ++seed) {
    for (const auto& [k, length] :
         std::vector<std::pair<int, int>>{{1, 3}, {2, 1}, {3, 1}, {4, 1}, {2, 2}}) {
      Models models(3, 50 + seed);
      ExpectLossless(models, {Rule::kBestOfK, Drawn::kIndependent, false}, Paths(k, length));
    }
  }
}

TEST(MoreElaborateRulesAcceptMore) {
  double block_gain = 0, traversal_gain = 0;
  for (unsigned seed = 0; seed < 20; ++seed) {
    Models models(3, 300 + seed);
    const auto mean = [&](Rule rule, Drawn drawn, const Tokens& shape) {
      return Enumerator(models, rule, drawn, shape).Run().mean;
    };
    const Tokens chain = {-1, 0, 1, 2}, tree = Paths(2, 2), bush = {-1, 0, 0, 0, 1};
    const double token_wise = mean(Rule::kTokenWise, Drawn::kIndependent, chain);
    const double block = mean(Rule::kBlock, Drawn::kIndependent, chain);
    EXPECT(block >= token_wise - kTolerance);
    EXPECT(std::fabs(mean(Rule::kTraversal, Drawn::kIndependent, chain) - block) < kTolerance);
    EXPECT(std::fabs(mean(Rule::kRecursive, Drawn::kIndependent, chain) - token_wise) < kTolerance);
    block_gain += block - token_wise;
    for (const Tokens& shape : {tree, bush}) {
      for (Drawn drawn : {Drawn::kIndependent, Drawn::kWithoutReplacement}) {
        const double target_only = mean(Rule::kTargetOnly, drawn, shape);
        const double recursive = mean(Rule::kRecursive, drawn, shape);
        const double traversal = mean(Rule::kTraversal, drawn, shape);
        EXPECT(recursive >= target_only - kTolerance);
        EXPECT(traversal >= recursive - kTolerance);
        traversal_gain += traversal - recursive;
      }
      const double deterministic = mean(Rule::kTargetOnly, Drawn::kDeterministic, shape);
      for (Rule rule : {Rule::kRecursive, Rule::kTraversal}) {
        EXPECT(std::fabs(mean(rule, Drawn::kDeterministic, shape) - deterministic) < kTolerance);
      }
    }
    for (Rule rule : {Rule::kTokenWise, Rule::kBlock, Rule::kTraversal}) {
      EXPECT(std::fabs(mean(rule, Drawn::kDeterministic, chain) -
                       mean(Rule::kTargetOnly, Drawn::kDeterministic, chain)) < kTolerance);
    }
  }
  EXPECT(block_gain > 0.01);
  EXPECT(traversal_gain > 0.01);
}

TEST(WhatIsRuledOutEarlyWouldHaveBeenRejected) {
  constexpr int kSize = 6;
  const kvctl::VocabContext vocab(kSize);
  const kvctl::Sampling sampling;
  std::mt19937 random(8);
  for (const auto& [rule, parents] : {std::pair(Rule::kBlock, Tokens{-1, 0, 1, 2, 3}),
                                      std::pair(Rule::kTraversal, Tokens{-1, 0, 0, 1, 1, 2, 3})}) {
    int spared = 0;
    for (uint64_t trial = 0; trial < 20000; ++trial) {
      const int n = static_cast<int>(parents.size());
      std::vector<double> target, draft;
      Tokens tokens(n), rows(n);
      for (int i = 0; i < n; ++i) {
        const std::vector<double> p = RandomDistribution(random, kSize),
                                  q = RandomDistribution(random, kSize);
        target.insert(target.end(), p.begin(), p.end());
        draft.insert(draft.end(), q.begin(), q.end());
        tokens[i] = static_cast<int32_t>(random() % kSize);
        rows[i] = i;
      }
      const std::vector<Drawn> drawn(n, Drawn::kIndependent);
      kvctl::SequenceInput input;
      input.size = n;
      input.tokens = tokens.data();
      input.parents = parents.data();
      input.rows = rows.data();
      input.drawn = drawn.data();
      input.target = target.data();
      input.probabilities = true;
      input.target_type = input.draft.type = kvctl::DType::kFloat64;
      input.draft.probs = draft.data();
      input.draft.width = kSize;
      input.sampling = &sampling;
      kvctl::TreeVerifier verifier(vocab);
      const kvctl::RandomStream stream{3, trial};
      kvctl::RoundRandom quick(stream, 9, kvctl::Noise::kUniform);
      Patient patient(stream, 9, kvctl::Noise::kUniform);
      verifier.Start(input);
      const kvctl::Outcome a = kvctl::RunRule(rule, verifier, quick);
      verifier.Start(input);
      const kvctl::Outcome b = kvctl::RunRule(rule, verifier, patient);
      EXPECT_EQ(a.node, b.node);
      EXPECT_EQ(a.bonus, b.bonus);
      spared += patient.spared;
    }
    EXPECT(spared > 5000);
  }
}

TEST(TypicalIsLossyAndEnumeratesToOne) {
  Models models(3, 5);
  kvctl::Rule rule = Rule::kTypical;
  const Result result = Enumerator(models, rule, Drawn::kIndependent, {-1, 0, 1}).Run();
  EXPECT(std::fabs(result.coverage - 1) < kTolerance);
}

namespace {

kvctl::SequenceInput Input(const Tokens& parents, const std::vector<Drawn>& drawn,
                           const kvctl::Sampling& sampling) {
  kvctl::SequenceInput input;
  input.size = static_cast<int32_t>(parents.size());
  input.parents = parents.data();
  input.drawn = drawn.data();
  input.sampling = &sampling;
  return input;
}

}  // namespace

TEST(BiasedCombinationsAreRefusedAndAlternativesNamed) {
  const kvctl::Sampling sampling;
  const Tokens chain = {-1, 0, 1}, tree = {-1, 0, 0};
  const std::vector<Drawn> independent(3, Drawn::kIndependent), coupled(3, Drawn::kCoupled),
      without(3, Drawn::kWithoutReplacement);
  EXPECT_ERROR(kvctl::CheckRule(Rule::kGreedy, Input(chain, independent, sampling)), kValue,
               "use 'target_only'");
  EXPECT_ERROR(kvctl::CheckRule(Rule::kTokenWise, Input(tree, independent, sampling)), kValue,
               "is for chains, but node 0 has several children");
  EXPECT_ERROR(kvctl::CheckRule(Rule::kBlock, Input(tree, independent, sampling)), kValue,
               "use 'recursive', 'traversal'");
  for (Rule rule : {Rule::kTokenWise, Rule::kBlock, Rule::kRecursive, Rule::kTraversal}) {
    EXPECT_ERROR(kvctl::CheckRule(rule, Input(chain, coupled, sampling)), kValue,
                 "use 'coupled' or 'target_only'");
  }
  EXPECT_ERROR(kvctl::CheckRule(Rule::kBestOfK, Input(tree, without, sampling)), kValue,
               "lossless only for drawn='independent'");
  const Tokens ragged = {-1, 0, 0, 1};
  const std::vector<Drawn> four(4, Drawn::kIndependent);
  EXPECT_ERROR(kvctl::CheckRule(Rule::kBestOfK, Input(ragged, four, sampling)), kValue,
               "paths of one length");
  kvctl::CheckRule(Rule::kTargetOnly, Input(tree, coupled, sampling));
  kvctl::CheckRule(Rule::kRecursive, Input(tree, without, sampling));
}
