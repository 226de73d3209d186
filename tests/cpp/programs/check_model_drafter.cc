// A draft model's cache: after every round what a prefill of the accepted tokens makes.
#include <cstring>
#include <map>
#include <vector>

#include "check.h"
#include "models.h"

namespace {

using kvctl::Draft;
using kvctl::Drawn;
using kvctl::Request;
using kvctl::RoundResult;

/*! \brief Whether two saved sequences are equal, bit for bit. */
bool Equal(const kvctl::SavedSequence& a, const kvctl::SavedSequence& b) {
  if (a.length != b.length || a.next_position != b.next_position) return false;
  for (const auto part : {&kvctl::SavedSequence::k, &kvctl::SavedSequence::v}) {
    const tvm::runtime::Tensor &x = a.*part, &y = b.*part;
    int64_t size = 1;
    for (int i = 0; i < x->ndim; ++i) {
      if (x->shape[i] != y->shape[i]) return false;
      size *= x->shape[i];
    }
    if (std::memcmp(x->data, y->data, size * sizeof(float)) != 0) return false;
  }
  return true;
}

/*! \brief A ModelDrafter whose cache is compared with a fresh prefill after every round. */
class ComparedDrafter : public kvctl::Drafter {
 public:
  ComparedDrafter(kvctl::ModelRunner* runner, const kvctl::ModelDrafter::Options& options)
      : runner_(runner), fresh_(LoadDraftModel()), drafter_(runner, options), options_(options) {}

  std::vector<Draft> Propose(const std::vector<const Request*>& requests) override {
    return drafter_.Propose(requests);
  }
  void Observe(const std::vector<RoundResult>& results) override {
    drafter_.Observe(results);
    for (const RoundResult& result : results) {
      const Request& request = *result.request;
      const auto sequence = drafter_.SequenceOf(request);
      if (!sequence) continue;
      const int64_t held = drafter_.SequenceLength(request);
      const auto size = static_cast<int64_t>(request.tokens.size());
      const auto nodes = result.draft->tree.size() - 1;
      const auto accepted = static_cast<int32_t>(result.accepted.size());
      EXPECT_EQ(runner_->cache()->PendingLength(*sequence), 0);
      if (nodes > 0) {
        // After full acceptance it lacks the last draft, which it never read, and the bonus.
        const bool full = accepted == nodes;
        partial_rounds += !full;
        const int64_t lacking = static_cast<int64_t>(result.emitted.size()) - accepted + full;
        EXPECT_EQ(held, size - lacking);
      }
      fresh_.cache()->AddSequence(0);
      fresh_.Prefill({0}, {{request.tokens.begin(), request.tokens.begin() + held}});
      EXPECT(Equal(runner_->cache()->SaveSequence(*sequence), fresh_.cache()->SaveSequence(0)));
      fresh_.cache()->RemoveSequence(0);
      ++compared;
    }
  }
  void Finish(const Request& request) override { drafter_.Finish(request); }

  int compared = 0, partial_rounds = 0;

 private:
  kvctl::ModelRunner* runner_;
  kvctl::ModelRunner fresh_;
  kvctl::ModelDrafter drafter_;
  kvctl::ModelDrafter::Options options_;
};

void Compare(kvctl::ModelRunner drafts, Drawn how, std::optional<kvctl::Rule> rule, double t,
             int64_t tokens, bool adapt = false) {
  kvctl::ModelRunner target = LoadTarget(tokens);
  kvctl::ModelDrafter::Options options;
  options.how = how;
  options.length = 3;
  const std::vector<int64_t> before = drafts.cache()->SequenceIds();
  const int free = drafts.cache()->GetNumAvailablePages();
  ComparedDrafter drafter(&drafts, options);
  kvctl::GenerateOptions asked;
  asked.drafter = &drafter;
  asked.adapt = adapt;
  asked.rule = rule;
  asked.max_new_tokens = {30};
  asked.sampling.resize(1);
  asked.sampling[0].temperature = t;
  const auto texts = kvctl::Generate(&target, RandomPrompts(6, 25, 3), asked);
  EXPECT_EQ(texts.size(), 6u);
  EXPECT(drafter.compared > 30);
  EXPECT(drafter.partial_rounds > (adapt ? 0 : 10));
  EXPECT(drafts.cache()->SequenceIds() == before);
  EXPECT_EQ(drafts.cache()->GetNumAvailablePages(), free);
}

}  // namespace

TEST(ADraftModelsCacheIsAFreshPrefillAfterEveryRound) {
  Compare(LoadDraftModel(), Drawn::kDeterministic, std::nullopt, 0, 1024);
  Compare(LoadDraftModel(), Drawn::kIndependent, kvctl::Rule::kBlock, 1.0, 1024);
  Compare(LoadDraftModel(), Drawn::kDeterministic, std::nullopt, 0, 1024, true);
  Compare(LoadDraftModel(), Drawn::kCoupled, kvctl::Rule::kCoupled, 1.0, 1024);
}

TEST(ADraftModelsCacheIsAFreshPrefillWhereTextsHaveToWait) {
  Compare(LoadDraftModel(), Drawn::kIndependent, kvctl::Rule::kTokenWise, 1.0, 96);
}

TEST(ADraftModelThatIsTheTargetIsAcceptedInFullRounds) {
  kvctl::ModelRunner same = LoadTarget();
  kvctl::ModelRunner target = LoadTarget();
  kvctl::ModelDrafter drafter(&same);
  kvctl::GenerateOptions options;
  options.drafter = &drafter;
  options.adapt = false;
  options.max_new_tokens = {41};
  const auto text = kvctl::Generate(&target, {{5, 9, 30, 7}}, options)[0];
  EXPECT_EQ(text.statistics.rounds, 8);  // of 4 drafts and the bonus each
  EXPECT_EQ(text.statistics.accepted, 32);
  EXPECT_EQ(text.statistics.drafted, 32);
}

TEST(ADraftModelWithoutRoomLeavesTextsUndrafted) {
  kvctl::ModelRunner target = LoadTarget();
  const auto prompts = RandomPrompts(6, 25, 4);
  kvctl::GenerateOptions plain;
  plain.max_new_tokens = {20};
  const auto expected = kvctl::Generate(&target, prompts, plain);
  const auto check = [&](int64_t tokens, int64_t sequences) {
    kvctl::ModelRunner small = LoadDraftModel(tokens, sequences);
    const int free = small.cache()->GetNumAvailablePages();
    small.cache()->AddSequence(0);  // somebody else's
    kvctl::ModelDrafter drafter(&small);
    kvctl::GenerateOptions options = plain;
    options.drafter = &drafter;
    options.adapt = false;
    const auto found = kvctl::Generate(&target, prompts, options);
    kvctl::Statistics total;
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT(found[i].tokens == expected[i].tokens);
      total += found[i].statistics;
    }
    EXPECT(total.drafted > 0 && total.drafted < 6 * 19 * 4);
    EXPECT(small.cache()->SequenceIds() == std::vector<int64_t>{0});
    EXPECT_EQ(small.cache()->GetNumAvailablePages(), free);
  };
  check(1024, 3);
  check(64, 8);
}

TEST(ADraftModelsOptionsAreChecked) {
  kvctl::ModelRunner drafts = LoadDraftModel();
  kvctl::ModelDrafter::Options options;
  options.length = 0;
  EXPECT_ERROR(kvctl::ModelDrafter(&drafts, options), kValue, "length must be at least 1, got 0");
  options.length = 1;
  options.how = static_cast<Drawn>(9);
  EXPECT_ERROR(kvctl::ModelDrafter(&drafts, options), kValue, "how must be one of the 4");
  options.how = Drawn::kIndependent;
  options.sampling = kvctl::Sampling();
  options.sampling->temperature = -1;
  EXPECT_ERROR(kvctl::ModelDrafter(&drafts, options), kValue, "temperature");
  EXPECT_ERROR(kvctl::ModelDrafter(nullptr), kValue, "the draft model must not be null");
}
