#include "core/sampling/draft_row.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/support/exact_math.h"
#include "kvctl/error.h"

namespace kvctl {

// total_ becomes NaN if the entries are no distribution.
template <typename T>
void DraftRow::LoadEntries(const T* probs, const int32_t* ids, int32_t width, int32_t vocab) {
  auto entries = std::make_shared<Entries>();
  bool valid = true;
  for (int32_t i = 0; i < width; ++i) {
    if (ids[i] == -1) continue;
    const double p = static_cast<double>(probs[i]);
    valid &= ids[i] >= 0 && ids[i] < vocab && p >= 0 && p <= 1.001;
    entries->emplace_back(ids[i], valid ? ToGrid(p) : 0);
    total_ += entries->back().second;
  }
  std::sort(entries->begin(), entries->end());
  const auto same_token = [](const auto& a, const auto& b) { return a.first == b.first; };
  valid &= std::adjacent_find(entries->begin(), entries->end(), same_token) == entries->end();
  if (!valid || !(std::fabs(total_ / kProbScale - 1) <= 1e-3)) {
    total_ = std::numeric_limits<double>::quiet_NaN();
  }
  entries_ = std::move(entries);
}

DraftRow::DraftRow(const VocabContext& vocab, const DraftInput& draft, int64_t row) {
  const int64_t at = row * draft.width;
  const auto* f32 = static_cast<const float*>(draft.probs) + at;
  const auto* f64 = static_cast<const double*>(draft.probs) + at;
  const bool wide = draft.type == DType::kFloat64;
  if (draft.ids != nullptr) {
    const int32_t* ids = draft.ids + at;
    wide ? LoadEntries(f64, ids, draft.width, vocab.size())
         : LoadEntries(f32, ids, draft.width, vocab.size());
  } else if (wide) {
    f64_ = f64;
    total_ = vocab.SumProbs(f64);
  } else {
    f32_ = f32;
    total_ = vocab.SumProbs(f32);
  }
  if (std::isnan(total_)) {
    Throw(ErrorKind::kValue, "row ", row,
          " of draft_probs is not a distribution: its entries must be in ",
          "[0, 1] and sum to 1 within 0.001, and sparse rows name each token once");
  }
}

DraftRow::DraftRow(Distribution distribution)
    : distribution_(std::make_shared<const Distribution>(std::move(distribution))) {
  total_ = distribution_->total;
}

double DraftRow::weight(int32_t token) const {
  if (f32_ != nullptr) return ToGrid(static_cast<double>(f32_[token]));
  if (f64_ != nullptr) return ToGrid(f64_[token]);
  if (distribution_ != nullptr) return distribution_->weights[token];
  const auto entry = std::lower_bound(entries_->begin(), entries_->end(), std::pair(token, -1.0));
  return entry != entries_->end() && entry->first == token ? entry->second : 0;
}

void DraftRow::Weights(const VocabOps& ops, int32_t at, int32_t n, double* out) const {
  if (f32_ != nullptr) {
    ops.weights_from_f32(f32_ + at, n, out);
  } else if (f64_ != nullptr) {
    ops.weights_from_f64(f64_ + at, n, out);
  } else if (distribution_ != nullptr) {
    std::copy_n(distribution_->weights.data() + at, n, out);
  } else {
    std::fill_n(out, n, 0.0);
    auto entry = std::lower_bound(entries_->begin(), entries_->end(), std::pair(at, -1.0));
    for (; entry != entries_->end() && entry->first < at + n; ++entry) {
      out[entry->first - at] = entry->second;
    }
  }
}

}  // namespace kvctl
