#include "core/round.h"

#include <algorithm>
#include <cmath>
#include <limits>
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

// The row of draft laws of one sequence, typed.
template <typename T>
struct DraftRow {
  DraftRow(const DraftInput& draft, int64_t row)
      : probs(static_cast<const T*>(draft.probs) + row * draft.width),
        ids(draft.ids == nullptr ? nullptr : draft.ids + row * draft.width),
        width(draft.width) {}

  // Grid weight of a sparse entry, NaN if it is none.
  double EntryWeight(int32_t i, int32_t vocab) const {
    const double p = static_cast<double>(probs[i]);
    const bool valid = ids[i] >= 0 && ids[i] < vocab && p >= 0 && p <= 1.001;
    return valid ? ToGrid(p) : std::numeric_limits<double>::quiet_NaN();
  }

  double Total(const Vocab& vocab) const {
    if (ids == nullptr) return vocab.SumProbs(probs);
    double total = 0;
    for (int32_t i = 0; i < width; ++i) {
      if (ids[i] != -1) total += EntryWeight(i, vocab.size());
    }
    std::vector<int32_t> named(ids, ids + width);
    std::sort(named.begin(), named.end());
    const auto first = std::upper_bound(named.begin(), named.end(), -1);
    const bool twice = std::adjacent_find(first, named.end()) != named.end();
    const bool is_law = !twice && std::fabs(total / kProbScale - 1) <= 1e-3;
    return is_law ? total : std::numeric_limits<double>::quiet_NaN();
  }

  double Weight(int32_t token) const {
    if (ids == nullptr) return ToGrid(static_cast<double>(probs[token]));
    const int32_t* found = std::find(ids, ids + width, token);
    return found == ids + width ? 0 : ToGrid(static_cast<double>(probs[found - ids]));
  }

  void Fill(const Vocab& vocab, Law* q) const {
    if (ids == nullptr) {
      vocab.FromProbs(probs, q);
      return;
    }
    vocab.OneHot(0, q);
    q->Remove(0);
    for (int32_t i = 0; i < width; ++i) {
      if (ids[i] == -1) continue;
      const double w = EntryWeight(i, vocab.size());
      q->weights[ids[i]] = w;
      q->block_sums[ids[i] / kVocabBlock] += w;
      q->total += w;
    }
  }

  const T* probs;
  const int32_t* ids;
  int32_t width;
};

// f(DraftRow) for the row's element type.
template <typename F>
auto WithDraftRow(const DraftInput& draft, int64_t row, F f) {
  return draft.type == RowType::kFloat64 ? f(DraftRow<double>(draft, row))
                                         : f(DraftRow<float>(draft, row));
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
  for (auto& level : levels_) {
    level->q_row = -1;
    level->q_filled = false;
  }
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

DraftLaw Round::Draft(int32_t node, Level* level) {
  const int32_t token = input_->tokens[node];
  if (input_->drawn[node] == Drawn::kDeterministic) return {true, token, 1, 1, {}};
  const DraftInput& draft = input_->draft;
  if (draft.probs == nullptr) {
    Throw(ErrorKind::kValue, "node ", node, " was drawn from a law, so draft_probs is needed");
  }
  const int32_t parent = input_->parents[node];
  const int64_t row = draft.per_node ? node : input_->rows[parent];
  if (level->q_row != row) {
    level->q_row = -1;
    level->q_filled = false;
    level->q_total =
        WithDraftRow(draft, row, [&](const auto& entries) { return entries.Total(vocab_); });
    if (std::isnan(level->q_total)) {
      Throw(ErrorKind::kValue, "row ", row, " of draft_probs is not a law: its entries must be in ",
            "[0, 1] and sum to 1 within 0.001, and sparse rows name each token once");
    }
    level->q_row = row;
  }
  const auto weight = [&](int32_t x) {
    return WithDraftRow(draft, row, [&](const auto& entries) { return entries.Weight(x); });
  };
  DraftLaw d{false, token, weight(token), level->q_total, {}};
  if (input_->drawn[node] == Drawn::kWithoutReplacement && !draft.per_node) {
    for (int32_t s = first_child_[parent]; s != node; s = next_sibling_[s]) {
      const int32_t earlier = input_->tokens[s];
      if (std::find(d.excluded.begin(), d.excluded.end(), earlier) != d.excluded.end()) continue;
      d.excluded.push_back(earlier);
      d.total -= weight(earlier);
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

void Round::FillDraft(Level* level) const {
  if (level->q_filled) return;
  WithDraftRow(input_->draft, level->q_row,
               [&](const auto& entries) { entries.Fill(vocab_, &level->q); });
  level->q_filled = true;
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
  FillDraft(level);
  Law& out = level->spare;
  double mass = vocab_.Subtract(r, a, level->q, d.total, &out);
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
