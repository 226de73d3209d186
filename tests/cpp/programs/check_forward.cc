// kvctl::ModelRunner::Forward: which rows have logits.
#include <cstring>
#include <vector>

#include "check.h"
#include "models.h"

namespace {

using kvctl::ModelRunner;

/*! \brief The logits of requests of 3, 1 and 6 tokens, in new sequences. */
tvm::runtime::Tensor Forward(ModelRunner* runner, bool last_logits) {
  std::vector<kvctl::StepRequest> requests;
  for (int64_t length : {3, 1, 6}) {
    kvctl::StepRequest& request = requests.emplace_back();
    request.seq_id = static_cast<int64_t>(requests.size());
    request.append_length = length;
    runner->AddSequence(request.seq_id);
  }
  kvctl::ForwardOptions options;
  options.last_logits = last_logits;
  auto logits = runner->Forward(requests, {5, 9, 30, 7, 5, 9, 30, 7, 8, 2}, options).logits;
  for (const kvctl::StepRequest& request : requests) runner->RemoveSequence(request.seq_id);
  return logits;
}

void CheckLastLogits(int64_t prefill_chunk_size) {
  kvctl::Init();
  kvctl::RunnerOptions options;
  options.max_sequences = 4;
  options.prefill_chunk_size = prefill_chunk_size;
  ModelRunner runner = ModelRunner::Load(std::getenv("KVCTL_TEST_MODEL"), options);
  const auto all = Forward(&runner, false), last = Forward(&runner, true);
  const int64_t width = runner.vocab_size();
  EXPECT_EQ(all->shape[0], 10);
  EXPECT_EQ(last->shape[0], 3);
  EXPECT_EQ(last->shape[1], width);
  int64_t i = 0;
  for (int64_t row : {2, 3, 9}) {
    const auto* expected = static_cast<const float*>(all->data) + row * width;
    const auto* found = static_cast<const float*>(last->data) + i++ * width;
    EXPECT(std::memcmp(found, expected, width * sizeof(float)) == 0);
  }
}

}  // namespace

TEST(LastLogitsAreThoseBehindEachRequest) {
  CheckLastLogits(0);
  CheckLastLogits(4);  // the last request takes several steps
}
