// Several rounds in a row with the real random numbers: what no test of one round can see.
#include <array>
#include <cmath>
#include <cstdlib>
#include <sstream>
#include <vector>

#include "check.h"
#include "core/verify/rules.h"

namespace {

using kvctl::Drawn;
using kvctl::Purpose;
using kvctl::RandomStream;
using kvctl::Rule;

constexpr int kVocab = 3;
constexpr int kTokens = 4;  // tokens 2 to 4 are judged: 27 cells
const std::vector<double> kTarget = {0.45, 0.35, 0.2};
const std::vector<double> kDraft = {0.1, 0.5, 0.4};

// The real keys, or the mistake of keying by the position of the token concerned.
enum class Keys { kRound, kAcceptByToken, kDraftByToken };

int64_t Trials(int64_t usual) { return std::getenv("KVCTL_LONG") != nullptr ? 200000 : usual; }

/*! \brief RoundRandom, but accepting by numbers that the next round uses again. */
class AcceptByToken {
 public:
  AcceptByToken(RandomStream stream, uint32_t root) : stream_(stream), root_(root) {}
  bool Accept(double probability, int32_t node) const {
    const uint32_t position = root_ + static_cast<uint32_t>(node);  // of a chain
    const uint64_t bits = stream_.Bits(Purpose::kAccept, position, 0);
    return static_cast<double>(bits >> 11) * 0x1p-53 < probability;
  }
  bool MayAccept(double at_most, int32_t node) const { return Accept(at_most, node); }
  int32_t SampleResidual(kvctl::Residual& residual, int32_t node) const {
    return residual.SampleToken(stream_.Bits(Purpose::kResidual, root_, node));
  }
  int32_t Bonus(kvctl::RowSampler& target, int32_t node) const {
    return target.SampleToken(stream_.Bits(Purpose::kResidual, root_, node));
  }
  int32_t Token(kvctl::TreeVerifier&, int32_t) const { return -1; }

 private:
  RandomStream stream_;
  uint32_t root_;
};

/*! \brief One request that decodes round after round. */
class Request {
 public:
  Request(const kvctl::VocabContext& vocab, Rule rule, Drawn drawn, bool tree, Keys keys)
      : vocab_(vocab), verifier_(vocab), rule_(rule), drawn_(drawn), keys_(keys) {
    if (tree) {
      parents_ = {-1, 0, 0, 1};
    } else {
      parents_ = {-1, 0, 1, 2};
    }
    if (rule == Rule::kBestOfK) parents_ = {-1, 0, 0, 1, 2};
    const int n = static_cast<int>(parents_.size());
    tokens_.resize(n);
    for (int i = 0; i < n; ++i) {
      rows_.push_back(i);
      target_.insert(target_.end(), kTarget.begin(), kTarget.end());
      draft_.insert(draft_.end(), kDraft.begin(), kDraft.end());
    }
    kinds_.assign(n, drawn);
    input_.size = n;
    input_.tokens = tokens_.data();
    input_.parents = parents_.data();
    input_.rows = rows_.data();
    input_.drawn = kinds_.data();
    input_.target = target_.data();
    input_.target_type = input_.draft.type = kvctl::DType::kFloat64;
    input_.probabilities = true;
    input_.draft.probs = draft_.data();
    input_.draft.width = kVocab;
    input_.sampling = &sampling_;
    kvctl::CheckRule(rule, input_);
  }

  std::array<int32_t, kTokens> Decode(uint64_t request) {
    const RandomStream stream{11, request};
    std::array<int32_t, kTokens> output;
    int count = 0;
    uint32_t root = 5;
    while (count < kTokens) {
      DrawDraft(stream, root);
      verifier_.Start(input_);
      const kvctl::Outcome outcome = Decide(stream, root);
      std::vector<int32_t> emitted;
      for (int32_t node : verifier_.Path(outcome.node)) emitted.push_back(tokens_[node]);
      emitted.push_back(outcome.bonus);
      for (size_t i = 0; i < emitted.size() && count < kTokens; ++i) output[count++] = emitted[i];
      root += static_cast<uint32_t>(emitted.size());
    }
    return output;
  }

 private:
  kvctl::Outcome Decide(RandomStream stream, uint32_t root) {
    if (keys_ == Keys::kAcceptByToken) {
      AcceptByToken random(stream, root);
      return kvctl::RunRule(rule_, verifier_, random);
    }
    const bool gumbel = rule_ == Rule::kCoupled;
    kvctl::RoundRandom random(stream, root,
                              gumbel ? kvctl::Noise::kGumbel : kvctl::Noise::kUniform);
    return kvctl::RunRule(rule_, verifier_, random);
  }

  void DrawDraft(RandomStream stream, uint32_t root) {
    kvctl::RowInput row;
    row.values = kDraft.data();
    row.type = kvctl::DType::kFloat64;
    row.probabilities = true;
    kvctl::RowSampler sampler(vocab_);
    sampler.Load(row, sampling_);
    for (int node = 1; node < input_.size; ++node) {
      kvctl::Distribution distribution;
      sampler.FillDistribution(&distribution);
      if (drawn_ == Drawn::kWithoutReplacement) {
        for (int s = 1; s < node; ++s) {
          if (parents_[s] == parents_[node]) distribution.Remove(tokens_[s]);
        }
      }
      verifier_.Start(input_);
      const uint32_t depth = static_cast<uint32_t>(verifier_.depth(node));
      const uint64_t bits = keys_ == Keys::kDraftByToken
                                ? stream.Bits(Purpose::kDraft, root + depth, 0)
                                : stream.Bits(Purpose::kDraft, root, static_cast<uint32_t>(node));
      if (drawn_ == Drawn::kCoupled) {
        int32_t pair[2];
        sampler.SampleGumbel(GumbelKey(stream, root + depth), 2, pair);
        bool first = true;
        for (int s = 1; s < node; ++s) first &= parents_[s] != parents_[node];
        tokens_[node] = pair[first ? 0 : 1];
      } else if (drawn_ == Drawn::kDeterministic) {
        tokens_[node] = (node + 1) % kVocab;
      } else {
        tokens_[node] = vocab_.SampleToken(distribution, bits);
      }
    }
  }

  const kvctl::VocabContext& vocab_;
  kvctl::TreeVerifier verifier_;
  Rule rule_;
  Drawn drawn_;
  Keys keys_;
  kvctl::Sampling sampling_;
  std::vector<int32_t> tokens_, parents_, rows_;
  std::vector<Drawn> kinds_;
  std::vector<double> target_, draft_;
  kvctl::SequenceInput input_;
};

// Pearson's statistic of tokens 2 to 4; 26 degrees of freedom. Above 99.2 with probability 1e-10.
double Statistic(Rule rule, Drawn drawn, bool tree, Keys keys, int64_t trials) {
  const kvctl::VocabContext vocab(kVocab);
  Request request(vocab, rule, drawn, tree, keys);
  std::vector<int64_t> counts(27, 0);
  for (int64_t trial = 0; trial < trials; ++trial) {
    const auto output = request.Decode(static_cast<uint64_t>(trial));
    ++counts[output[1] * 9 + output[2] * 3 + output[3]];
  }
  double statistic = 0;
  for (int cell = 0; cell < 27; ++cell) {
    const double expected =
        static_cast<double>(trials) * kTarget[cell / 9] * kTarget[cell / 3 % 3] * kTarget[cell % 3];
    statistic += (counts[cell] - expected) * (counts[cell] - expected) / expected;
  }
  return statistic;
}

constexpr double kCritical = 99.2;

void ExpectLossless(Rule rule, Drawn drawn, bool tree) {
  const double statistic = Statistic(rule, drawn, tree, Keys::kRound, Trials(40000));
  if (statistic > kCritical) {
    std::ostringstream what;
    what << kvctl::RuleName(rule) << " / " << kvctl::DrawnName(drawn) << ": " << statistic;
    check::Fail(__FILE__, __LINE__, what.str());
  }
}

}  // namespace

TEST(RoundsOfChainsAreLossless) {
  for (Rule rule : {Rule::kTargetOnly, Rule::kTokenWise, Rule::kBlock, Rule::kTraversal}) {
    ExpectLossless(rule, Drawn::kIndependent, false);
    ExpectLossless(rule, Drawn::kDeterministic, false);
  }
}

TEST(RoundsOfTreesAreLossless) {
  for (Rule rule : {Rule::kTargetOnly, Rule::kRecursive, Rule::kTraversal}) {
    for (Drawn drawn : {Drawn::kIndependent, Drawn::kWithoutReplacement, Drawn::kDeterministic}) {
      ExpectLossless(rule, drawn, true);
    }
  }
  ExpectLossless(Rule::kBestOfK, Drawn::kIndependent, true);
}

TEST(RoundsOfCoupledDraftsAreLossless) {
  for (bool tree : {false, true}) {
    ExpectLossless(Rule::kCoupled, Drawn::kCoupled, tree);
    ExpectLossless(Rule::kTargetOnly, Drawn::kCoupled, tree);
  }
}

TEST(AcceptanceKeyedByTokenPositionIsSeen) {
  for (Rule rule : {Rule::kBlock, Rule::kTraversal}) {
    EXPECT(Statistic(rule, Drawn::kIndependent, false, Keys::kAcceptByToken, Trials(40000)) >
           kCritical);
  }
}

TEST(DraftsKeyedByTokenPositionAreSeen) {
  for (Rule rule : {Rule::kBlock, Rule::kTraversal}) {
    EXPECT(Statistic(rule, Drawn::kIndependent, false, Keys::kDraftByToken, Trials(40000)) >
           kCritical);
  }
}
