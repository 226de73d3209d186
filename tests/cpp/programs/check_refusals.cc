// What kvctl::Generate and its drafters refuse, and how they say it.
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "models.h"

namespace {

using kvctl::Draft;
using kvctl::GenerateOptions;
using kvctl::Generation;
using kvctl::Request;
using kvctl::TokenTree;

std::vector<Generation> Generate(kvctl::ModelRunner* runner, const GenerateOptions& options,
                                 std::vector<std::vector<int32_t>> prompts = {{1, 2, 3}}) {
  return kvctl::Generate(runner, prompts, options);
}

}  // namespace

TEST(OptionsOutOfRangeAreRefused) {
  kvctl::ModelRunner runner = LoadTarget(64);
  const auto refused = [&](void (*change)(GenerateOptions*), const std::string& why) {
    GenerateOptions options;
    change(&options);
    EXPECT_ERROR(Generate(&runner, options), kValue, why);
    EXPECT(runner.cache()->SequenceIds().empty());
  };
  refused([](GenerateOptions* o) { o->max_new_tokens = {0}; },
          "max_new_tokens must be at least 1, got 0");
  refused([](GenerateOptions* o) { o->max_new_tokens = {3, 4}; },
          "max_new_tokens must have one entry, or one for each of the 1 prompts, got 2");
  refused([](GenerateOptions* o) { o->seed = {}; }, "seed must have one entry");
  refused([](GenerateOptions* o) { o->request_id = {1, 2, 3}; }, "request_id must have one entry");
  refused([](GenerateOptions* o) { o->max_batch = -1; },
          "max_batch must be at least 1, or 0 for no limit, got -1");
  refused([](GenerateOptions* o) { o->rule = static_cast<kvctl::Rule>(20); },
          "rule must be one of the 9 of kvctl::Rule, got 20");
  refused(
      [](GenerateOptions* o) {
        o->sampling.resize(1);
        o->sampling[0].top_p = 2;
      },
      "top_p");
  refused(
      [](GenerateOptions* o) {
        o->rule = kvctl::Rule::kGreedy;
        o->sampling.resize(1);
      },
      "rule 'greedy' is lossless only at temperature 0, got temperature 1");
  GenerateOptions options;
  EXPECT_ERROR(Generate(&runner, options, {{}}), kValue, "prompt 0 must have at least one token");
  EXPECT_ERROR(Generate(&runner, options, {{1}, {256}}), kValue,
               "prompt 1 has token 256; the vocabulary is 0 to 255");
  EXPECT_ERROR(Generate(&runner, options, {std::vector<int32_t>(65, 1)}), kValue,
               "prompt 0 has 65 tokens; there is room for 64 in the cache");
  EXPECT_ERROR(Generate(nullptr, options), kValue, "the runner must not be null");
  options.first_seq_id = 4;
  runner.cache()->AddSequence(5);
  EXPECT_ERROR(Generate(&runner, options, {{1}, {2}}), kValue,
               "sequence 5 of text 1 exists already");
}

TEST(DraftsThatBreakTheContractAreRefused) {
  struct Fixed : kvctl::Drafter {
    std::vector<Draft> Propose(const std::vector<const Request*>&) override { return drafts; }
    std::vector<Draft> drafts;
  };
  kvctl::ModelRunner runner = LoadTarget(64);
  GenerateOptions options;
  options.max_new_tokens = {4};
  const int32_t root = Generate(&runner, options)[0].tokens[0];
  const auto refused = [&](std::vector<Draft> drafts, const std::string& why) {
    Fixed drafter;
    drafter.drafts = std::move(drafts);
    options.drafter = &drafter;
    options.adapt = false;
    EXPECT_ERROR(Generate(&runner, options), kValue, why);
    EXPECT(runner.cache()->SequenceIds().empty());
  };
  refused({}, "the drafter returned 0 drafts for 1 requests");
  refused({Draft::Nothing(root + 1)},
          "the root is the last token of the text, " + std::to_string(root));
  refused({{TokenTree::Chain({root, 1, 2, 3})}},
          "3 nodes behind the root for text 0; its limit was 2");
  refused({{TokenTree::Chain({root, 256})}},
          "drafted token 256 for text 0; the vocabulary is 0 to");
  refused({{TokenTree::Chain({root, 1}), {}}}, "said of 0 nodes how they were drawn");
  refused({{TokenTree::Chain({root, 1}), {kvctl::Drawn::kIndependent}, {0.5f}}},
          "returned 1 probabilities for text 0; its tree has 2 rows of 256");
  options.drafter = nullptr;
  options.rule = kvctl::Rule::kBlock;
  options.sampling.resize(1);
  const int32_t sampled = Generate(&runner, options)[0].tokens[0];
  refused({{TokenTree({sampled, 1, 2}, {-1, 0, 0})}}, "chain");
}

TEST(CopyingDraftersCheckTheirOptions) {
  EXPECT_ERROR(kvctl::LookupDrafter({0, 1}), kValue, "length must be at least 1, got 0");
  EXPECT_ERROR(kvctl::LookupDrafter({1, -3}), kValue, "nodes_per_match must be at least 1, got -3");
  kvctl::SuffixDrafter::Options options;
  options.capacity = 1;
  EXPECT_ERROR(kvctl::SuffixDrafter{options}, kValue, "capacity");
  kvctl::LookupDrafter lookup;
  const Request unknown = {3, {1, 2}, 2, 0, {}, 0, 0, 1};
  EXPECT_ERROR(lookup.Propose({&unknown}), kKey, "text 3, which it has not been told to start");
}
