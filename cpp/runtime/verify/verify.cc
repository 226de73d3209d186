#include "kvctl/verify.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/sampling.h"
#include "kvctl/error.h"
#include "runtime/verify/verify_batch.h"
#include "runtime/verify/verify_checks.h"

namespace kvctl {
namespace {

template <typename T>
const int64_t* DataOrNull(const std::vector<T>& values) {
  return values.empty() ? nullptr : reinterpret_cast<const int64_t*>(values.data());
}

std::vector<Sampling> SamplingOf(const VerifyBatch& batch) {
  if (!batch.sampling.empty()) return batch.sampling;
  Sampling sampling;
  if (batch.rule == Rule::kGreedy) sampling.temperature = 0;
  return {sampling};
}

BatchArrays ArraysOf(const VerifyBatch& batch) {
  BatchArrays arrays;
  arrays.rule =
      static_cast<Rule>(InRange(static_cast<int64_t>(batch.rule), 0, kNumRules - 1, "rule"));
  for (const TokenTree& tree : batch.trees) arrays.trees.push_back(ViewOf(tree));
  for (Drawn drawn : batch.drawn) {
    InRange(static_cast<int64_t>(drawn), 0, kNumDrawn - 1, "drawn");
  }
  arrays.drawn = batch.drawn;
  CheckRowType(batch.dtype, batch.probabilities, batch.probabilities ? "probabilities" : "logits");
  if (batch.logits == nullptr && batch.num_rows > 0) {
    Throw(ErrorKind::kValue, "logits must be given");
  }
  arrays.target = batch.logits;
  arrays.target_type = batch.dtype;
  arrays.target_stride = CheckStride(batch.row_stride, batch.vocab_size);
  arrays.probabilities = batch.probabilities;
  arrays.num_rows = batch.num_rows;
  arrays.vocab_size = batch.vocab_size;

  const DraftProbs& draft = batch.draft_probs;
  CheckRowType(draft.dtype, true, "draft_probs");
  if (draft.ids != nullptr && draft.width < 1) {
    Throw(ErrorKind::kValue, "sparse draft_probs must have a width of at least 1, got ",
          draft.width);
  }
  arrays.draft = {draft.probs, draft.dtype, draft.width, draft.ids, draft.per_node};
  arrays.draft_rows = draft.per_node ? NumNodes(arrays.trees) : batch.num_rows;

  arrays.sampling = SamplingOf(batch);
  arrays.seed = batch.seed;
  const auto size = static_cast<int64_t>(batch.trees.size());
  const bool random = batch.rule == Rule::kTypical || AnyRandom(arrays.sampling);
  CheckStreams(batch.request_ids, batch.root_positions, size, random);
  arrays.request_ids = DataOrNull(batch.request_ids);
  arrays.root_positions = DataOrNull(batch.root_positions);
  for (const std::vector<int32_t>& tokens : batch.history) {
    arrays.history.push_back({tokens.data(), static_cast<int64_t>(tokens.size())});
  }
  arrays.bitmask = FitBitmask(batch.bitmask, NumNodes(arrays.trees), batch.bitmask_words,
                              batch.vocab_size, &arrays.fitted_bitmask);
  for (double threshold : {batch.epsilon, batch.delta}) {
    if (!(threshold >= 0 && threshold < std::numeric_limits<double>::infinity())) {
      Throw(ErrorKind::kValue, "epsilon and delta must be at least 0 and finite, got ", threshold);
    }
  }
  arrays.epsilon = batch.epsilon;
  arrays.delta = batch.delta;
  return arrays;
}

}  // namespace

std::vector<VerifiedSequence> Verify(const VerifyBatch& batch) {
  BatchArrays arrays = ArraysOf(batch);
  std::vector<VerifyItem> items = MakeItems(&arrays);
  const int64_t n = NumNodes(arrays.trees);
  std::vector<int32_t> nodes(n), tokens(n), kept(n);
  std::vector<double> log_probs(batch.log_probs ? n : 0);
  std::vector<VerifiedSequence> outcomes(items.size());
  for (size_t b = 0; batch.status && b < items.size(); ++b) items[b].error = &outcomes[b].error;
  SetOutputs(
      {nodes.data(), tokens.data(), kept.data(), batch.log_probs ? log_probs.data() : nullptr},
      &items);
  VerifyItems(arrays.rule, static_cast<int32_t>(batch.vocab_size), ShareItemsAmongThreads, &items);

  for (size_t b = 0; b < items.size(); ++b) {
    const VerifyItem& item = items[b];
    VerifiedSequence& outcome = outcomes[b];
    outcome.kept.assign(item.kept, item.kept + item.num_nodes + 1);
    outcome.accepted_nodes.assign(item.nodes, item.nodes + item.num_nodes);
    outcome.tokens.assign(item.tokens, item.tokens + item.num_tokens);
    outcome.bonus = item.bonus;
    outcome.finished = item.finished;
    if (batch.log_probs) {
      outcome.log_probs.assign(item.log_probs, item.log_probs + item.num_tokens);
    }
  }
  return outcomes;
}

}  // namespace kvctl
