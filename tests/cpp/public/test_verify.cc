// kvctl::Verify decides as the core rules do, bit for bit, and refuses what they cannot decide.
#include <algorithm>
#include <limits>
#include <vector>

#include "check.h"
#include "core/verify/rules.h"
#include "kvctl/verify.h"
#include "verify_case.h"

namespace {

using kvctl::Drawn;
using kvctl::Rule;
using kvctl::VerifiedSequence;
using kvctl::VerifyBatch;

bool Same(const VerifiedSequence& a, const VerifiedSequence& b) {
  return a.kept == b.kept && a.accepted_nodes == b.accepted_nodes && a.tokens == b.tokens &&
         a.bonus == b.bonus && a.finished == b.finished && a.log_probs == b.log_probs;
}

bool Same(const std::vector<VerifiedSequence>& a, const std::vector<VerifiedSequence>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const auto& x, const auto& y) { return Same(x, y); });
}

/*! \brief What the core rule decides for one tree, whose rows and nodes begin where `at` says. */
VerifiedSequence ByCore(const VerifyBatch& batch, size_t b, int64_t at) {
  const kvctl::TokenTree& tree = batch.trees[b];
  kvctl::SequenceInput input;
  input.size = tree.size();
  input.tokens = tree.tokens().data();
  input.parents = tree.parents().data();
  input.rows = tree.rows().data();
  input.drawn = batch.drawn.data() + at;
  input.target = static_cast<const float*>(batch.logits) + at * batch.vocab_size;
  input.draft.probs = static_cast<const float*>(batch.draft_probs.probs) + at * batch.vocab_size;
  input.draft.width = static_cast<int32_t>(batch.vocab_size);
  input.sampling = &batch.sampling[b];
  input.epsilon = batch.epsilon;
  input.delta = batch.delta;
  const kvctl::VocabContext vocab(static_cast<int32_t>(batch.vocab_size));
  kvctl::TreeVerifier verifier(vocab);
  verifier.Start(input);
  const auto noise = batch.rule == Rule::kCoupled ? kvctl::Noise::kGumbel : kvctl::Noise::kUniform;
  const kvctl::RoundRandom random({batch.seed, batch.request_ids[b]},
                                  static_cast<uint32_t>(batch.root_positions[b]), noise);
  const kvctl::Outcome decided = kvctl::RunRule(batch.rule, verifier, random);

  VerifiedSequence expected;
  expected.kept = {0};
  const std::vector<int32_t>& stops = batch.sampling[b].stop_tokens;
  const auto emit = [&](int32_t token, int32_t after) {
    expected.tokens.push_back(token);
    expected.log_probs.push_back(verifier.Target(after).LogProb(token));
    expected.finished = std::find(stops.begin(), stops.end(), token) != stops.end();
  };
  int32_t last = 0;
  for (int32_t node : verifier.Path(decided.node)) {
    if (expected.finished) break;
    expected.accepted_nodes.push_back(node);
    expected.kept.push_back(tree.rows()[node]);
    emit(tree.tokens()[node], last);
    last = node;
  }
  if (!expected.finished) emit(decided.bonus, last);
  if (!expected.finished) expected.bonus = decided.bonus;
  return expected;
}

constexpr Rule kRules[] = {Rule::kGreedy,  Rule::kTargetOnly, Rule::kTokenWise,
                           Rule::kBlock,   Rule::kRecursive,  Rule::kTraversal,
                           Rule::kBestOfK, Rule::kCoupled,    Rule::kTypical};

/*! \brief A chain of three nodes over a vocabulary of four. */
struct SmallBatch : VerifyBatch {
  std::vector<float> values = {0, 1, 3, 0, 2, 0, 0, 0, 0, 0, 0, 5};
  std::vector<float> uniform = std::vector<float>(12, 0.25f);

  SmallBatch() {
    trees = {kvctl::TokenTree::Chain({1, 2, 0})};
    logits = values.data();
    num_rows = 3;
    vocab_size = 4;
    root_positions = {7};
  }
  SmallBatch(const SmallBatch&) = delete;
};

}  // namespace

TEST(VerifyDecidesAsTheCoreRulesDo) {
  for (Rule rule : kRules) {
    for (int32_t vocab : {7, 33, 9001}) {
      const VerifyCase given(rule, vocab, vocab > 1000 ? 6 : 200, 100 + vocab);
      const std::vector<VerifiedSequence> outcomes = kvctl::Verify(given.batch);
      EXPECT_EQ(outcomes.size(), given.batch.trees.size());
      int64_t at = 0;
      for (size_t b = 0; b < outcomes.size(); ++b) {
        if (!Same(outcomes[b], ByCore(given.batch, b, at))) {
          check::Fail(__FILE__, __LINE__, kvctl::RuleName(rule));
        }
        at += given.batch.trees[b].size();
      }
    }
  }
}

TEST(VerifyDoesNotDependOnTheBatch) {
  VerifyCase given(Rule::kTraversal, 33, 20, 5);
  const std::vector<VerifiedSequence> together = kvctl::Verify(given.batch);
  int64_t at = 0;
  for (size_t b = 0; b < together.size(); ++b) {
    VerifyBatch alone = given.batch;
    const int32_t size = given.batch.trees[b].size();
    alone.trees = {given.batch.trees[b]};
    alone.drawn.assign(given.batch.drawn.begin() + at, given.batch.drawn.begin() + at + size);
    alone.logits = given.logits.data() + at * 33;
    alone.draft_probs.probs = given.probs.data() + at * 33;
    alone.num_rows = size;
    alone.sampling = {given.batch.sampling[b]};
    alone.request_ids = {given.batch.request_ids[b]};
    alone.root_positions = {given.batch.root_positions[b]};
    EXPECT(Same(kvctl::Verify(alone)[0], together[b]));
    at += size;
  }
}

TEST(RowsMayHaveAStride) {
  VerifyCase given(Rule::kTargetOnly, 33, 20, 6);
  const std::vector<VerifiedSequence> expected = kvctl::Verify(given.batch);
  std::vector<float> padded(given.batch.num_rows * 40, 1e9f);
  for (int64_t row = 0; row < given.batch.num_rows; ++row) {
    std::copy_n(given.logits.data() + row * 33, 33, padded.data() + row * 40);
  }
  given.batch.logits = padded.data();
  given.batch.row_stride = 40;
  EXPECT(Same(kvctl::Verify(given.batch), expected));
}

TEST(DefaultsAreGreedyAndTheSoftmax) {
  SmallBatch small;
  small.rule = Rule::kGreedy;
  small.root_positions.clear();
  const VerifiedSequence greedy = kvctl::Verify(small)[0];
  EXPECT(greedy.tokens == std::vector<int32_t>({2, 0, 3}));
  EXPECT(greedy.kept == std::vector<int32_t>({0, 1, 2}));
  EXPECT_EQ(greedy.bonus, 3);
  EXPECT(greedy.log_probs.empty());

  SmallBatch sampled;
  const VerifiedSequence by_default = kvctl::Verify(sampled)[0];
  sampled.sampling = {kvctl::Sampling()};
  EXPECT(Same(kvctl::Verify(sampled)[0], by_default));
  EXPECT(kvctl::IsLossless(Rule::kBlock) && !kvctl::IsLossless(Rule::kTypical));
}

TEST(RowsOfTheTreeAreKept) {
  SmallBatch small;
  small.rule = Rule::kGreedy;
  small.trees = {kvctl::TokenTree({1, 2, 0}, {-1, 0, 1}, {0, 2, 4})};
  small.num_rows = 5;
  small.values = {0, 1, 3, 0, 9, 9, 9, 9, 2, 0, 0, 0, 9, 9, 9, 9, 0, 0, 0, 5};
  small.logits = small.values.data();
  EXPECT(kvctl::Verify(small)[0].kept == std::vector<int32_t>({0, 2, 4}));
}

TEST(StopTokensEndASequence) {
  SmallBatch small;
  kvctl::Sampling greedy;
  greedy.temperature = 0;
  greedy.stop_tokens = {0};
  small.sampling = {greedy};
  const VerifiedSequence outcome = kvctl::Verify(small)[0];
  EXPECT(outcome.finished);
  EXPECT_EQ(outcome.bonus, -1);
  EXPECT(outcome.tokens == std::vector<int32_t>({2, 0}));
}

TEST(AnEmptyBatchHasNoOutcomes) {
  VerifyBatch batch;
  batch.vocab_size = 4;
  EXPECT(kvctl::Verify(batch).empty());
}

TEST(BiasedCombinationsAreRefused) {
  SmallBatch small;
  small.rule = Rule::kGreedy;
  small.sampling = {kvctl::Sampling()};
  EXPECT_ERROR(kvctl::Verify(small), kValue, "use 'target_only'");
  small.rule = Rule::kTokenWise;
  small.drawn = {Drawn::kCoupled};
  EXPECT_ERROR(kvctl::Verify(small), kValue, "biased for drawn='coupled'");
  small.drawn = {Drawn::kIndependent};
  EXPECT_ERROR(kvctl::Verify(small), kValue, "draft_probs is needed");
  small.draft_probs.probs = small.uniform.data();
  EXPECT_EQ(kvctl::Verify(small).size(), 1u);
  small.trees = {kvctl::TokenTree({1, 2, 0}, {-1, 0, 0})};
  EXPECT_ERROR(kvctl::Verify(small), kValue, "is for chains");
}

TEST(SizesThatDoNotFitAreRefused) {
  const auto refuse = [](auto change, kvctl::ErrorKind kind, const char* part) {
    SmallBatch small;
    change(&small);
    check::ExpectError([&] { kvctl::Verify(small); }, kind, part, __FILE__, __LINE__);
  };
  constexpr auto kValue = kvctl::ErrorKind::kValue;
  constexpr auto kType = kvctl::ErrorKind::kType;
  constexpr auto kIndex = kvctl::ErrorKind::kIndex;
  refuse([](auto* b) { b->logits = nullptr; }, kValue, "logits must be given");
  refuse([](auto* b) { b->num_rows = 4; }, kValue, "the trees have 3 rows, but there are 4");
  refuse([](auto* b) { b->vocab_size = 2; }, kValue, "holds token 2, but the vocabulary has 2");
  refuse([](auto* b) { b->vocab_size = 0; }, kValue, "the vocabulary size must be in");
  refuse([](auto* b) { b->row_stride = 3; }, kValue, "row_stride must be 0 or at least");
  refuse([](auto* b) { b->dtype = kvctl::DType::kFloat64; }, kType, "got float64");
  refuse(
      [](auto* b) {
        b->probabilities = true;
        b->dtype = kvctl::DType::kFloat16;
      },
      kType, "probabilities must be float32 or float64");
  refuse([](auto* b) { b->draft_probs.dtype = kvctl::DType::kBFloat16; }, kType, "draft_probs");
  refuse(
      [](auto* b) {
        b->draft_probs.probs = b->uniform.data();
        b->draft_probs.ids = b->trees[0].tokens().data();
      },
      kValue, "a width of at least 1");
  refuse([](auto* b) { b->drawn.resize(2); }, kValue, "one for each of 3 nodes, got 2");
  refuse([](auto* b) { b->drawn.clear(); }, kValue, "one for each of 3 nodes, got 0");
  refuse([](auto* b) { b->drawn = {static_cast<Drawn>(4)}; }, kValue, "drawn must be in");
  refuse([](auto* b) { b->rule = static_cast<Rule>(9); }, kValue, "rule must be in");
  refuse([](auto* b) { b->sampling.resize(2); }, kValue, "one for each of 1 sequences, got 2");
  refuse([](auto* b) { b->history.resize(2); }, kValue, "history must have one entry");
  refuse(
      [](auto* b) {
        b->history = {{4}};
        b->sampling.resize(1);
        b->sampling[0].presence_penalty = 1;  // without a penalty the history is not read
      },
      kValue, "history holds token 4");
  refuse([](auto* b) { b->epsilon = -1; }, kValue, "epsilon and delta must be at least 0");
  refuse([](auto* b) { b->delta = std::numeric_limits<double>::quiet_NaN(); }, kValue, "got nan");
  refuse(
      [](auto* b) {
        b->sampling.resize(1);
        b->sampling[0].logit_bias = {{4, 1.0f}};
      },
      kIndex, "logit_bias names token 4");
  refuse(
      [](auto* b) {
        b->sampling.resize(1);
        b->sampling[0].top_p = 0;
      },
      kValue, "top_p must be in (0, 1]");
}

TEST(RandomNumbersMustBeNamed) {
  SmallBatch small;
  small.root_positions.clear();
  EXPECT_ERROR(kvctl::Verify(small), kValue, "root_positions must be given");
  small.root_positions = {1, 2};
  EXPECT_ERROR(kvctl::Verify(small), kValue, "root_positions must have one entry for each of 1");
  small.root_positions = {-1};
  EXPECT_ERROR(kvctl::Verify(small), kValue, "its position must be in [0");
  VerifyCase two(Rule::kTargetOnly, 7, 2, 1);
  two.batch.request_ids.clear();
  two.batch.sampling = {kvctl::Sampling()};
  EXPECT_ERROR(kvctl::Verify(two.batch), kValue, "request_ids must be given");
}

TEST(ErrorsNameTheSequence) {
  VerifyCase given(Rule::kTargetOnly, 7, 3, 1);
  const int64_t first = given.batch.trees[0].size();
  std::fill_n(given.logits.begin() + first * 7, 7, -std::numeric_limits<float>::infinity());
  EXPECT_ERROR(kvctl::Verify(given.batch), kValue, "sequence 1: no token is left");
}

TEST(WithStatusOneSequenceDoesNotStopTheOthers) {
  for (Rule rule : {Rule::kTargetOnly, Rule::kTokenWise, Rule::kTraversal}) {
    VerifyCase given(rule, 7, 4, 1);
    const std::vector<kvctl::VerifiedSequence> all = kvctl::Verify(given.batch);
    const int64_t first = given.batch.trees[0].size();
    std::fill_n(given.logits.begin() + first * 7, 7, -std::numeric_limits<float>::infinity());
    EXPECT_ERROR(kvctl::Verify(given.batch), kValue, "no token is left");
    given.batch.status = true;
    const std::vector<kvctl::VerifiedSequence> each = kvctl::Verify(given.batch);
    for (size_t b = 0; b < each.size(); ++b) {
      if (b == 1) {
        EXPECT(each[b].error.find("no token is left") != std::string::npos);
        EXPECT(each[b].kept == (std::vector<int32_t>{0}));
        EXPECT(each[b].tokens.empty() && each[b].log_probs.empty());
        EXPECT(each[b].bonus == -1 && !each[b].finished);
      } else {
        EXPECT(each[b].error.empty());
        EXPECT(each[b].tokens == all[b].tokens && each[b].kept == all[b].kept);
        EXPECT(each[b].log_probs == all[b].log_probs && each[b].bonus == all[b].bonus);
      }
    }
  }
}

TEST(WithStatusABadCallStillThrows) {
  VerifyCase given(Rule::kTargetOnly, 7, 2, 1);
  given.batch.status = true;
  given.batch.num_rows += 1;
  EXPECT_ERROR(kvctl::Verify(given.batch), kValue, "rows of logits");
}

TEST(ABitmaskMayBeAsWideAsTheTokenizersVocabulary) {
  constexpr int32_t kVocab = 70;  // three words
  VerifyCase given(Rule::kTargetOnly, kVocab, 3, 5);
  const int64_t nodes = given.batch.num_rows;  // a row for each node
  std::vector<uint32_t> three(nodes * 3, 0), two, five;
  for (int64_t i = 0; i < nodes; ++i) three[i * 3] = three[i * 3 + 1] = 0xf0f0f0f0u;
  for (int64_t i = 0; i < nodes; ++i) {
    two.insert(two.end(), {0xf0f0f0f0u, 0xf0f0f0f0u});
    five.insert(five.end(), {0xf0f0f0f0u, 0xf0f0f0f0u, 0, 0, 0});
  }
  given.batch.bitmask = three.data();
  const std::vector<kvctl::VerifiedSequence> expected = kvctl::Verify(given.batch);
  const auto same = [&](const std::vector<uint32_t>& bitmask, int64_t words) {
    given.batch.bitmask = bitmask.data();
    given.batch.bitmask_words = words;
    const std::vector<kvctl::VerifiedSequence> got = kvctl::Verify(given.batch);
    for (size_t b = 0; b < got.size(); ++b) EXPECT(got[b].tokens == expected[b].tokens);
  };
  same(three, 3);
  same(two, 2);
  same(five, 5);
  five[3] = 1;
  EXPECT_ERROR(kvctl::Verify(given.batch), kValue, "bitmask row 0 allows tokens in word 3");
  given.batch.bitmask_words = -1;
  EXPECT_ERROR(kvctl::Verify(given.batch), kValue, "bitmask_words must be at least 0, got -1");
}

TEST(WithBitmasksRowsBehindAStopTokenAreNotRead) {
  VerifyBatch batch;
  std::vector<float> logits(3 * 32, 0);
  logits[2] = 9;
  batch.trees = {kvctl::TokenTree({5, 2, 7}, {-1, 0, 1})};
  batch.logits = logits.data();
  batch.num_rows = 3;
  batch.vocab_size = 32;
  batch.sampling.resize(1);
  batch.sampling[0].stop_tokens = {2};
  batch.sampling[0].temperature = 0;
  const std::vector<uint32_t> bitmask = {~0u, 0, 0};
  batch.bitmask = bitmask.data();
  for (Rule rule : {Rule::kGreedy, Rule::kTargetOnly, Rule::kTokenWise, Rule::kTraversal}) {
    batch.rule = rule;
    const kvctl::VerifiedSequence outcome = kvctl::Verify(batch)[0];
    EXPECT(outcome.tokens == (std::vector<int32_t>{2}) && outcome.finished);
  }
}
