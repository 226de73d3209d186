#include "core/verify/tree_verifier.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "core/support/exact_math.h"
#include "kvctl/error.h"

namespace kvctl {
void TreeVerifier::Start(const SequenceInput& input) {
  input_ = &input;
  first_child_.assign(input.size, -1);
  next_sibling_.assign(input.size, -1);
  depths_.assign(input.size, 0);
  for (int32_t i = input.size - 1; i > 0; --i) {  // backward, so that each list is in node order
    if (ends_at(input.parents[i])) continue;
    next_sibling_[i] = first_child_[input.parents[i]];
    first_child_[input.parents[i]] = i;
  }
  for (int32_t i = 1; i < input.size; ++i) depths_[i] = depths_[input.parents[i]] + 1;
  for (auto& state : depth_states_) {
    state->node = -1;
    state->draft_row = -1;
  }
}

std::vector<int32_t> TreeVerifier::Path(int32_t node) const {
  std::vector<int32_t> path;
  for (; node > 0; node = input_->parents[node]) path.push_back(node);
  std::reverse(path.begin(), path.end());
  return path;
}

DepthState& TreeVerifier::state_at(int32_t depth) {
  while (static_cast<int32_t>(depth_states_.size()) <= depth)
    depth_states_.push_back(std::make_unique<DepthState>(vocab_));
  return *depth_states_[depth];
}

// Tokens seen before the row's own prediction: history, then the root, then the path to the node.
void TreeVerifier::FillCounts(int32_t node) {
  std::unordered_map<int32_t, int32_t> seen;
  for (int64_t i = 0; i < input_->history_size; ++i) ++seen[input_->history[i]];
  for (int32_t v = node; v >= 0; v = input_->parents[v]) {
    if (input_->tokens[v] >= 0) ++seen[input_->tokens[v]];
  }
  counts_.assign(seen.begin(), seen.end());
}

RowSampler& TreeVerifier::Target(int32_t node) {
  DepthState& state = this->state_at(depth(node));
  if (state.node == node) return state.target;
  state.node = -1;
  RowInput row;
  const int64_t vocab = vocab_.size();
  const int64_t stride = input_->target_stride == 0 ? vocab : input_->target_stride;
  row.values = static_cast<const char*>(input_->target) +
               DTypeSize(input_->target_type) * stride * input_->rows[node];
  row.type = input_->target_type;
  row.probabilities = input_->probabilities;
  if (input_->bitmask != nullptr) row.bitmask = input_->bitmask + (vocab + 31) / 32 * node;
  if (input_->sampling->penalizes()) {
    FillCounts(node);
    row.counts = &counts_;
  }
  try {
    state.target.Load(row, *input_->sampling);
  } catch (const Error& error) {
    Throw(error.kind(), "after node ", node, ": ", error.what());
  }
  state.node = node;
  return state.target;
}

DraftDistribution TreeVerifier::Draft(int32_t node) {
  const int32_t token = input_->tokens[node];
  if (input_->drawn[node] == Drawn::kDeterministic) return {true, token, 1, 1, {}, {}};
  const DraftInput& draft = input_->draft;
  if (draft.probs == nullptr) {
    Throw(ErrorKind::kValue, "node ", node,
          " was drawn from a distribution, so draft_probs is needed");
  }
  const int32_t parent = input_->parents[node];
  DepthState& state = this->state_at(depth(parent));
  const int64_t row = draft.per_node ? node : input_->rows[parent];
  if (state.draft_row != row) {
    state.draft_row = -1;
    state.draft = DraftRow(vocab_, draft, row);
    state.draft_row = row;
  }
  DraftDistribution d{false, token,      state.draft.weight(token), state.draft.total(),
                      {},    state.draft};
  if (input_->drawn[node] == Drawn::kWithoutReplacement && !draft.per_node) {
    for (int32_t s = first_child_[parent]; s != node; s = next_sibling_[s]) {
      const int32_t earlier = input_->tokens[s];
      if (std::find(d.excluded.begin(), d.excluded.end(), earlier) != d.excluded.end()) continue;
      d.excluded.push_back(earlier);
      d.total -= state.draft.weight(earlier);
    }
  }
  const bool repeated = std::find(d.excluded.begin(), d.excluded.end(), token) != d.excluded.end();
  if (repeated || !(d.weight > 0)) {
    Throw(ErrorKind::kValue, "node ", node, " holds token ", token,
          repeated ? ", which an earlier sibling holds: drawn without replacement it cannot be"
                   : ", which has probability 0 under its draft_probs: it was not drawn from them");
  }
  return d;
}

}  // namespace kvctl
