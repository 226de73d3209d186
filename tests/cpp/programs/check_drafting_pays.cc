// Rounds draft while that pays, by times that are made up here.
#include "check.h"
#include "models.h"
#include "runtime/generate/drafting_pays.h"

namespace {

using kvctl::DraftingPays;

/*! \brief Runs rounds of one text, and returns how many of them drafted. */
int Run(DraftingPays* pays, int rounds, int64_t emitted, double cost) {
  int drafted = 0;
  for (int i = 0; i < rounds; ++i) {
    const bool drafts = pays->Worthwhile(1);
    drafted += drafts;
    pays->Observe(1, drafts, drafts ? emitted : 1, drafts ? cost : 1.0);
  }
  return drafted;
}

/*! \brief Drafts the right token, whatever that costs. */
struct Oracle : kvctl::Drafter {
  std::vector<kvctl::Draft> Propose(const std::vector<const kvctl::Request*>& requests) override {
    ++calls;
    const int32_t next = answer[requests[0]->tokens.size() - requests[0]->prompt_length];
    if (requests[0]->limit == 0) return {kvctl::Draft::Nothing(requests[0]->root())};
    return {{kvctl::TokenTree::Chain({requests[0]->root(), next})}};
  }
  std::vector<int32_t> answer;
  int calls = 0;
};

}  // namespace

TEST(APlainRoundComesFirst) {
  DraftingPays pays;
  EXPECT(!pays.Worthwhile(1));
  pays.Observe(1, false, 1, 1.0);
  EXPECT(pays.Worthwhile(1));
  EXPECT(!pays.Worthwhile(4));  // so many texts were never timed
  EXPECT(pays.Worthwhile(1));
}

TEST(DraftsThatPayAreDrafted) {
  DraftingPays pays;
  EXPECT_EQ(Run(&pays, 200, 4, 2.0), 199);
}

TEST(DraftsThatDoNotPayAreTriedEverMoreRarely) {
  DraftingPays pays;
  const int drafted = Run(&pays, 200, 1, 2.0);
  EXPECT(drafted >= 6 && drafted <= 8);   // three at first, then after 8, 16, 32, 64 rounds
  EXPECT(Run(&pays, 200, 8, 2.0) > 100);  // the text has begun to repeat itself
  EXPECT(Run(&pays, 200, 1, 2.0) < 12);   // and no longer does
}

TEST(ARoundThatWasDisturbedSaysNothing) {
  DraftingPays pays;
  Run(&pays, 20, 4, 2.0);
  EXPECT(pays.Worthwhile(1));
  pays.Observe(1, true, 4, 100.0);
  EXPECT_EQ(Run(&pays, 50, 4, 2.0), 50);
}

TEST(RoundsAreObservedThatDoNotDraft) {
  kvctl::ModelRunner runner = LoadTarget();
  kvctl::GenerateOptions options;
  options.max_new_tokens = {101};
  Oracle oracle;
  oracle.answer = kvctl::Generate(&runner, {{1, 2, 3}}, options)[0].tokens;
  options.drafter = &oracle;
  EXPECT(kvctl::Generate(&runner, {{1, 2, 3}}, options)[0].tokens == oracle.answer);
  EXPECT(oracle.calls >= 3);
  oracle.calls = 0;
  options.adapt = false;
  EXPECT(kvctl::Generate(&runner, {{1, 2, 3}}, options)[0].tokens == oracle.answer);
  EXPECT_EQ(oracle.calls, 50);  // two tokens a round
}
