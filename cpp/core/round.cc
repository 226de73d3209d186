#include "core/round.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>
#include <unordered_map>

#include "core/exact_math.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

int64_t ElementSize(RowType type) {
  switch (type) {
    case RowType::kFloat64:
      return 8;
    case RowType::kFloat32:
      return 4;
    default:
      return 2;
  }
}

// Scatters a sparse row into a dense one.
template <typename T>
bool Scatter(const Vocab& vocab, const T* probs, const int32_t* ids, int32_t width, Law* q) {
  vocab.OneHot(0, q);
  q->Remove(0);
  bool valid = true;
  for (int32_t i = 0; i < width; ++i) {
    if (ids[i] == -1) continue;
    const double p = static_cast<double>(probs[i]);
    if (ids[i] < 0 || ids[i] >= vocab.size() || !(p >= 0 && p <= 1.001)) return false;
    const double w = ToGrid(p);
    valid &= q->weights[ids[i]] == 0;  // a token named twice
    q->weights[ids[i]] = w;
    q->block_sums[ids[i] / kVocabBlock] += w;
    q->total += w;
  }
  return valid && std::fabs(q->total / kProbScale - 1) <= 1e-3;
}

}  // namespace

void Round::Start(const SequenceInput& input) {
  input_ = &input;
  first_child_.assign(input.size, -1);
  next_sibling_.assign(input.size, -1);
  depths_.assign(input.size, 0);
  for (int32_t i = input.size - 1; i > 0; --i) {  // backward, so that each list is in node order
    next_sibling_[i] = first_child_[input.parents[i]];
    first_child_[input.parents[i]] = i;
  }
  for (int32_t i = 1; i < input.size; ++i) depths_[i] = depths_[input.parents[i]] + 1;
  for (auto& level : levels_) level->q_row = -1;
}

std::vector<int32_t> Round::Path(int32_t node) const {
  std::vector<int32_t> path;
  for (; node > 0; node = input_->parents[node]) path.push_back(node);
  std::reverse(path.begin(), path.end());
  return path;
}

Level& Round::level(int32_t depth) {
  while (static_cast<int32_t>(levels_.size()) <= depth)
    levels_.push_back(std::make_unique<Level>());
  return *levels_[depth];
}

// Tokens seen before the row's own prediction: history, then the root, then the path to the node.
void Round::FillCounts(int32_t node) {
  std::unordered_map<int32_t, int32_t> seen;
  for (int64_t i = 0; i < input_->history_size; ++i) ++seen[input_->history[i]];
  for (int32_t v = node; v >= 0; v = input_->parents[v]) {
    if (input_->tokens[v] >= 0) ++seen[input_->tokens[v]];
  }
  counts_.assign(seen.begin(), seen.end());
}

RowSampler& Round::Target(int32_t node) {
  RowInput row;
  const int64_t vocab = vocab_.size();
  row.values = static_cast<const char*>(input_->target) +
               ElementSize(input_->target_type) * vocab * input_->rows[node];
  row.type = input_->target_type;
  row.probabilities = input_->probabilities;
  if (input_->bitmask != nullptr) row.bitmask = input_->bitmask + (vocab + 31) / 32 * node;
  if (input_->sampling->penalizes()) {
    FillCounts(node);
    row.counts = &counts_;
  }
  try {
    sampler_.Load(row, *input_->sampling);
  } catch (const Error& error) {
    Throw(error.kind(), "after node ", node, ": ", error.what());
  }
  return sampler_;
}

void Round::LoadDraft(int64_t row, Law* q) const {
  const DraftInput& draft = input_->draft;
  const char* probs =
      static_cast<const char*>(draft.probs) + ElementSize(draft.type) * draft.width * row;
  const bool f64 = draft.type == RowType::kFloat64;
  bool valid;
  if (draft.ids != nullptr) {
    const int32_t* ids = draft.ids + static_cast<int64_t>(draft.width) * row;
    valid = f64 ? Scatter(vocab_, reinterpret_cast<const double*>(probs), ids, draft.width, q)
                : Scatter(vocab_, reinterpret_cast<const float*>(probs), ids, draft.width, q);
  } else {
    valid = f64 ? vocab_.FromProbs(reinterpret_cast<const double*>(probs), q)
                : vocab_.FromProbs(reinterpret_cast<const float*>(probs), q);
  }
  if (!valid) {
    Throw(ErrorKind::kValue, "row ", row, " of draft_probs is not a law: its entries must be in ",
          "[0, 1] and sum to 1 within 0.001, and sparse rows name each token once");
  }
}

DraftLaw Round::Draft(int32_t node, Level* level) {
  const Drawn drawn = input_->drawn[node];
  DraftLaw d{drawn == Drawn::kDeterministic, input_->tokens[node], nullptr, {}, 1};
  if (d.one_hot) return d;
  const DraftInput& draft = input_->draft;
  if (draft.probs == nullptr) {
    Throw(ErrorKind::kValue, "node ", node, " was drawn from a law, so draft_probs is needed");
  }
  const int32_t parent = input_->parents[node];
  const int64_t row = draft.per_node ? node : input_->rows[parent];
  if (level->q_row != row) {
    level->q_row = -1;
    LoadDraft(row, &level->q);
    level->q_row = row;
  }
  d.q = &level->q;
  d.total = d.q->total;
  if (drawn == Drawn::kWithoutReplacement && !draft.per_node) {
    for (int32_t s = first_child_[parent]; s != node; s = next_sibling_[s]) {
      const int32_t token = input_->tokens[s];
      if (std::find(d.excluded.begin(), d.excluded.end(), token) != d.excluded.end()) continue;
      d.excluded.push_back(token);
      d.total -= d.q->weights[token];
    }
  }
  const bool repeated =
      std::find(d.excluded.begin(), d.excluded.end(), d.token) != d.excluded.end();
  if (repeated || !(d.q->weights[d.token] > 0)) {
    Throw(ErrorKind::kValue, "node ", node, " holds token ", d.token,
          repeated ? ", which an earlier sibling holds: drawn without replacement it cannot be"
                   : ", which has probability 0 under its draft_probs: it was not drawn from them");
  }
  return d;
}

double Round::Subtract(double a, const DraftLaw& d, Level* level) const {
  Law& r = level->r;
  if (d.one_hot) {
    // relu(a r - one-hot): nothing but the drafted token changes, and that one loses everything.
    const double left = r.total - r.weights[d.token];
    if (!(left > 0)) return 0;
    const double mass = a * (left / r.total);
    r.Remove(d.token);
    return mass;
  }
  Law& out = level->spare;
  double mass = vocab_.Subtract(r, a, *d.q, d.total, &out);
  for (int32_t token : d.excluded) {
    const double w = ToGrid(a * (r.weights[token] / r.total));
    out.block_sums[token / kVocabBlock] += w - out.weights[token];
    out.total += w - out.weights[token];
    out.weights[token] = w;
    mass = out.total / kProbScale;
  }
  if (!(out.total > 0)) return 0;
  std::swap(r, out);
  return mass;
}

}  // namespace kvctl
