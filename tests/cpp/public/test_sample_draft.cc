// kvctl::SampleDraft draws from the distributions that it returns.
#include <vector>

#include "check.h"
#include "core/sampling/distribution.h"
#include "core/support/rng.h"
#include "kvctl/verify.h"

namespace {

using kvctl::Drawn;

/*! \brief Two rows over a vocabulary of five. */
struct SmallDraft : kvctl::DraftBatch {
  std::vector<float> values = {0, 1, 3, -1e30f, 0, 2, 0, 1, 0, 0};

  SmallDraft() {
    logits = values.data();
    num_rows = 2;
    vocab_size = 5;
    num_tokens = 3;
    seed = 5;
    request_ids = {11, 12};
    root_positions = {7, 70};
  }
  SmallDraft(const SmallDraft&) = delete;
};

}  // namespace

TEST(DraftsComeFromTheDistributionsReturned) {
  SmallDraft draft;
  const kvctl::DraftSample sample = kvctl::SampleDraft(draft);
  const kvctl::VocabContext vocab(5);
  for (int row = 0; row < 2; ++row) {
    kvctl::Distribution distribution;
    EXPECT(vocab.FromProbs(sample.probs.data() + row * 5, &distribution));
    const kvctl::RandomStream stream{5, draft.request_ids[row]};
    for (uint32_t i = 0; i < 3; ++i) {
      const auto root = static_cast<uint32_t>(draft.root_positions[row]);
      const uint64_t bits = stream.Bits(kvctl::Purpose::kDraft, root, 1 + i);
      EXPECT_EQ(sample.tokens[row * 3 + i], vocab.SampleToken(distribution, bits));
    }
  }
}

TEST(DraftsOfEveryKind) {
  SmallDraft draft;
  draft.how = Drawn::kDeterministic;
  draft.root_positions.clear();
  draft.request_ids.clear();
  EXPECT(kvctl::SampleDraft(draft).tokens == std::vector<int32_t>({2, 1, 0, 0, 2, 1}));

  SmallDraft exhausted;
  exhausted.how = Drawn::kWithoutReplacement;
  exhausted.num_tokens = 5;
  std::vector<int32_t> tokens = kvctl::SampleDraft(exhausted).tokens;
  EXPECT_EQ(tokens[4], -1);  // token 3 of the first row has probability 0
  EXPECT(tokens[9] >= 0);
}

TEST(CoupledDraftsAreAcceptedByTheSameLogits) {
  SmallDraft draft;
  draft.how = Drawn::kCoupled;
  draft.num_tokens = 1;
  const kvctl::DraftSample sample = kvctl::SampleDraft(draft);
  for (int row = 0; row < 2; ++row) {
    kvctl::VerifyBatch batch;
    batch.rule = kvctl::Rule::kCoupled;
    batch.drawn = {Drawn::kCoupled};
    batch.trees = {kvctl::TokenTree::Chain({0, sample.tokens[row]})};
    std::vector<float> logits(draft.values.begin() + row * 5, draft.values.begin() + row * 5 + 5);
    logits.resize(10);
    batch.logits = logits.data();
    batch.num_rows = 2;
    batch.vocab_size = 5;
    batch.seed = draft.seed;
    batch.request_ids = {draft.request_ids[row]};
    batch.root_positions = {draft.root_positions[row]};
    EXPECT(kvctl::Verify(batch)[0].accepted_nodes == std::vector<int32_t>({1}));
  }
}

TEST(DraftsThatCannotBeDrawnAreRefused) {
  const auto refuse = [](auto change, kvctl::ErrorKind kind, const char* part) {
    SmallDraft draft;
    change(&draft);
    check::ExpectError([&] { kvctl::SampleDraft(draft); }, kind, part, __FILE__, __LINE__);
  };
  constexpr auto kValue = kvctl::ErrorKind::kValue;
  refuse([](auto* d) { d->logits = nullptr; }, kValue, "logits must be given");
  refuse([](auto* d) { d->num_rows = -1; }, kValue, "the number of rows");
  refuse([](auto* d) { d->num_tokens = 0; }, kValue, "the number of tokens to draw must be in");
  refuse([](auto* d) { d->dtype = kvctl::DType::kFloat64; }, kvctl::ErrorKind::kType, "float64");
  refuse([](auto* d) { d->row_stride = 4; }, kValue, "row_stride must be 0 or at least");
  refuse([](auto* d) { d->sampling.resize(3); }, kValue, "one for each of 2");
  refuse([](auto* d) { d->root_positions.clear(); }, kValue, "root_positions must be given");
  refuse([](auto* d) { d->request_ids.clear(); }, kValue, "request_ids must be given");
  refuse([](auto* d) { d->first_nodes = {1}; }, kValue, "first_nodes must have one entry");
  refuse([](auto* d) { d->depths = {0, 1}; }, kValue, "depth must be in");
  refuse([](auto* d) { d->how = static_cast<Drawn>(7); }, kValue, "how must be in");
  refuse([](auto* d) { d->values.assign(10, -1.0f / 0.0f); }, kValue, "row 0: no token is left");
}

TEST(ADraftsBitmaskMayBeAsWideAsTheTokenizersVocabulary) {
  SmallDraft draft;
  draft.how = Drawn::kDeterministic;
  draft.num_tokens = 1;
  const std::vector<uint32_t> wide = {0b00011, 0, 0b01000, 0};  // two words for five tokens
  draft.bitmask = wide.data();
  draft.bitmask_words = 2;
  EXPECT(kvctl::SampleDraft(draft).tokens == std::vector<int32_t>({1, 3}));
  const std::vector<uint32_t> beyond = {1, 0, 1, 4};
  draft.bitmask = beyond.data();
  EXPECT_ERROR(kvctl::SampleDraft(draft), kValue, "bitmask row 1 allows tokens in word 1");
}
