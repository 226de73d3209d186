// kvctl::Generate: batches of random texts, drafters and callbacks that throw, a store that is
// shared.
#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "models.h"

namespace {

using kvctl::Draft;
using kvctl::FinishReason;
using kvctl::GenerateOptions;
using kvctl::Generation;
using kvctl::Request;
using kvctl::RoundResult;
using kvctl::TokenTree;

constexpr int32_t kVocabSize = 256;

/*! \brief Drafts random trees, some of them right, and throws where it is told to. */
class RandomDrafter : public kvctl::Drafter {
 public:
  explicit RandomDrafter(unsigned seed) : random_(seed) {}
  void Start(const Request& request) override {
    EXPECT(started.insert(request.id).second);
    Count();
  }
  std::vector<Draft> Propose(const std::vector<const Request*>& requests) override {
    std::vector<Draft> drafts;
    Count();
    for (const Request* request : requests) {
      EXPECT(started.count(request->id) == 1);
      std::vector<int32_t> tokens = {request->root()}, parents = {-1};
      const int64_t nodes = std::min<int64_t>(request->limit, random_() % 6);
      for (int64_t i = 1; i <= nodes; ++i) {
        parents.push_back(static_cast<int32_t>(random_() % i));
        tokens.push_back(Guess(*request, i));
      }
      drafts.push_back({TokenTree(tokens, parents)});
    }
    return drafts;
  }
  void Observe(const std::vector<RoundResult>&) override { Count(); }
  void Finish(const Request& request) override {
    EXPECT_EQ(started.erase(request.id), 1u);
    Count();
  }

  std::set<int64_t> started;
  std::map<int64_t, std::vector<int32_t>> answers;  // by Request::id
  int throws_at = -1;                               // which call throws

 private:
  void Count() {
    if (calls_++ == throws_at) throw std::runtime_error("the drafter has had enough");
  }
  /*! \brief The right token at some depth, or any. */
  int32_t Guess(const Request& request, int64_t depth) {
    const auto found = answers.find(request.id);
    const int64_t at = request.root_position() + depth - request.prompt_length;
    const bool known = found != answers.end() && at < static_cast<int64_t>(found->second.size());
    if (known && random_() % 3 != 0) return found->second[at];
    return static_cast<int32_t>(random_() % kVocabSize);
  }

  std::mt19937 random_;
  int calls_ = 0;
};

/*! \brief Options of a batch of random texts. */
GenerateOptions RandomOptions(size_t count, std::mt19937* random) {
  GenerateOptions options;
  options.seed.clear();
  options.max_new_tokens.clear();
  for (size_t i = 0; i < count; ++i) {
    kvctl::Sampling sampling;
    sampling.temperature = 0.5 * ((*random)() % 3);
    if ((*random)() % 3 == 0) sampling.repetition_penalty = 1.2;
    for (int j = 0; j < 2; ++j) {
      sampling.stop_tokens.push_back(static_cast<int32_t>((*random)() % kVocabSize));
    }
    options.sampling.push_back(sampling);
    options.seed.push_back((*random)() % 2);
    options.max_new_tokens.push_back(1 + (*random)() % 90);
  }
  options.request_id = {100};
  options.log_probs = true;
  return options;
}

/*! \brief What a text of a batch is by itself, in a cache with room for it. */
Generation Alone(kvctl::ModelRunner* runner, const std::vector<int32_t>& prompt,
                 const GenerateOptions& options, size_t i) {
  GenerateOptions one = options;
  one.drafter = nullptr;
  one.on_tokens = nullptr;
  one.max_batch = 0;
  one.sampling = {options.sampling[i]};
  one.seed = {options.seed[i]};
  one.request_id = {options.request_id[0] + i};
  one.max_new_tokens = {options.max_new_tokens[i]};
  return kvctl::Generate(runner, {prompt}, one)[0];
}

std::vector<Generation> Generate(kvctl::ModelRunner* runner, const GenerateOptions& options,
                                 std::vector<std::vector<int32_t>> prompts = {{1, 2, 3}}) {
  return kvctl::Generate(runner, prompts, options);
}

}  // namespace

TEST(RandomBatchesAreTheTextsAlone) {
  kvctl::ModelRunner roomy = LoadTarget(2048, 2);
  std::mt19937 random(11);
  int64_t replayed = 0, accepted = 0;
  std::set<FinishReason> reasons;
  for (unsigned trial = 0; trial < 12; ++trial) {
    const auto prompts = RandomPrompts(1 + random() % 7, 30, trial);
    GenerateOptions options = RandomOptions(prompts.size(), &random);
    kvctl::ModelRunner small = LoadTarget(120 + 8 * (random() % 8), 1 + random() % 6);
    const int free = small.cache()->GetNumAvailablePages();
    RandomDrafter drafter(trial);
    std::vector<Generation> expected;
    for (size_t i = 0; i < prompts.size(); ++i) {
      expected.push_back(Alone(&roomy, prompts[i], options, i));
      if (random() % 4 != 0) drafter.answers[i] = expected.back().tokens;
    }
    options.drafter = trial % 4 == 0 ? nullptr : &drafter;
    options.adapt = trial % 4 == 1;
    options.max_batch = random() % 5;
    std::map<int64_t, std::vector<int32_t>> told;
    options.on_tokens = [&](int64_t text, const std::vector<int32_t>& tokens) {
      told[text].insert(told[text].end(), tokens.begin(), tokens.end());
    };
    const auto found = kvctl::Generate(&small, prompts, options);
    for (size_t i = 0; i < prompts.size(); ++i) {
      EXPECT(found[i].tokens == expected[i].tokens);
      EXPECT(found[i].log_probs == expected[i].log_probs);
      EXPECT_EQ(found[i].log_probs.size(), found[i].tokens.size());
      EXPECT(found[i].finish_reason == expected[i].finish_reason);
      EXPECT(told[i] == found[i].tokens);
      replayed += found[i].statistics.replayed_tokens;
      accepted += found[i].statistics.accepted;
      reasons.insert(found[i].finish_reason);
    }
    EXPECT(drafter.started.empty());
    EXPECT_EQ(small.cache()->GetNumAvailablePages(), free);
    EXPECT(small.cache()->SequenceIds().empty());
  }
  EXPECT(replayed > 0);
  EXPECT(accepted > 100);
  EXPECT(reasons.count(FinishReason::kStopToken) == 1 && reasons.count(FinishReason::kLength) == 1);
}

TEST(WhateverThrowsLeavesNothingBehind) {
  const auto prompts = RandomPrompts(5, 20, 2);
  for (int64_t tokens : {int64_t{1024}, int64_t{96}}) {
    kvctl::ModelRunner runner = LoadTarget(tokens);
    runner.cache()->AddSequence(77);  // somebody else's
    runner.Prefill({77}, {{1, 2, 3}});
    const int free = runner.cache()->GetNumAvailablePages();
    int thrown = 0;
    for (int call = 0; call < 40; ++call) {
      RandomDrafter drafter(5);
      drafter.throws_at = call;
      GenerateOptions options;
      options.drafter = &drafter;
      options.max_new_tokens = {12};
      options.adapt = call % 5 == 4;
      if (call % 3 == 1) options.max_batch = 2;
      try {
        kvctl::Generate(&runner, prompts, options);
      } catch (const std::runtime_error& error) {
        EXPECT_EQ(std::string(error.what()), "the drafter has had enough");
        ++thrown;
      }
      EXPECT(drafter.started.empty());
      EXPECT(runner.cache()->SequenceIds() == std::vector<int64_t>{77});
      EXPECT_EQ(runner.cache()->GetNumAvailablePages(), free);
    }
    EXPECT(thrown > 15);
    for (int call = 0; call < 6; ++call) {
      GenerateOptions options;
      options.max_new_tokens = {12};
      int calls = 0;
      options.on_tokens = [&](int64_t, const std::vector<int32_t>&) {
        if (calls++ == 4 * call) throw std::runtime_error("enough");
      };
      bool caught = false;
      try {
        kvctl::Generate(&runner, prompts, options);
      } catch (const std::runtime_error&) {
        caught = true;
      }
      EXPECT(caught);
      EXPECT(runner.cache()->SequenceIds() == std::vector<int64_t>{77});
      EXPECT_EQ(runner.cache()->GetNumAvailablePages(), free);
    }
  }
}

TEST(TextsEndForEveryReason) {
  kvctl::ModelRunner runner = LoadTarget(64);
  GenerateOptions options;
  options.max_new_tokens = {10};
  const std::vector<int32_t> tokens = Generate(&runner, options)[0].tokens;
  EXPECT_EQ(tokens.size(), 10u);
  options.stop_tokens = {tokens[6], 999999};
  auto text = Generate(&runner, options)[0];
  EXPECT(text.finish_reason == FinishReason::kStopToken);
  EXPECT(text.tokens.size() <= 7 && text.tokens.back() == tokens[6]);
  options.stop_tokens.clear();
  options.stop_when = [n = 0](int64_t, int32_t) mutable { return ++n == 4; };
  text = Generate(&runner, options)[0];
  EXPECT(text.finish_reason == FinishReason::kStopWhen && text.tokens.size() == 4);
  options.stop_when = nullptr;
  options.max_new_tokens = {1000};
  text = Generate(&runner, options)[0];
  EXPECT_EQ(std::string(kvctl::FinishReasonName(text.finish_reason)), "cache");
  EXPECT_EQ(text.tokens.size(), 62u);  // the last one is not forwarded
  kvctl::ModelRunner roomy = LoadTarget(1024);
  text = Generate(&roomy, options)[0];
  EXPECT_EQ(std::string(kvctl::FinishReasonName(text.finish_reason)), "context");
  EXPECT_EQ(text.tokens.size(), 510u);
  EXPECT(kvctl::Generate(&runner, {}, options).empty());
}

TEST(ASuffixStoreLearnsAndIsShared) {
  kvctl::ModelRunner runner = LoadTarget();
  kvctl::SuffixDrafter drafter;
  GenerateOptions options;
  options.max_new_tokens = {40};
  const auto expected = Generate(&runner, options)[0];
  options.drafter = &drafter;
  options.adapt = false;
  const auto first = Generate(&runner, options)[0];
  EXPECT(first.tokens == expected.tokens);
  EXPECT_EQ(drafter.num_texts(), 1);
  EXPECT_EQ(drafter.num_tokens(), 43);
  const auto second = Generate(&runner, options)[0];
  EXPECT(second.tokens == expected.tokens);
  EXPECT(second.statistics.rounds < 10);  // the answer is in the store
  EXPECT(second.statistics.rounds < first.statistics.rounds);

  const std::string path = std::string(std::getenv("KVCTL_TEST_FOLDER")) + "/store";
  drafter.Save(path);
  kvctl::SuffixDrafter other;
  other.Load(path);
  options.drafter = &other;
  EXPECT_EQ(Generate(&runner, options)[0].statistics.rounds, second.statistics.rounds);
  EXPECT_ERROR(other.Load(path + "_absent"), kFileNotFound, "_absent");
  EXPECT_EQ(other.num_texts(), 3);
  other.Learn({{1, 2}, {3}});
  EXPECT_EQ(other.num_texts(), 5);
  EXPECT_ERROR(other.Learn({{-1}}), kValue, "-1");
}
