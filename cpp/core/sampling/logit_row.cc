#include "core/sampling/logit_row.h"

#include <algorithm>

#include "core/sampling/sampling.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

// Calls f(token, value) for the entries of a list by token that lie in [at, at + n).
template <typename T, typename F>
void ForTokens(const std::vector<std::pair<int32_t, T>>& list, int32_t at, int32_t n, F f) {
  auto entry = std::lower_bound(list.begin(), list.end(), at,
                                [](const auto& e, int32_t token) { return e.first < token; });
  for (; entry != list.end() && entry->first < at + n; ++entry) f(entry->first, entry->second);
}

template <typename T>
void SortByToken(std::vector<std::pair<int32_t, T>>* list) {
  const auto less = [](const auto& a, const auto& b) { return a.first < b.first; };
  if (!std::is_sorted(list->begin(), list->end(), less)) {
    std::stable_sort(list->begin(), list->end(), less);  // a token named twice: in the order given
  }
}

}  // namespace

void LogitRow::Load(const RowInput& row, const Sampling& sampling) {
  if (row.type == DType::kFloat64) {
    Throw(ErrorKind::kType,
          "logits must be float32, float16 or bfloat16; float64 holds distributions");
  }
  values_ = row.values;
  convert_ = row.type == DType::kFloat16    ? ops_.from_f16
             : row.type == DType::kBFloat16 ? ops_.from_bf16
                                            : nullptr;
  bitmask_ = row.bitmask;
  sampling_ = &sampling;
  bias_ = sampling.logit_bias;
  SortByToken(&bias_);
  counts_.clear();
  if (sampling.penalizes() && row.counts != nullptr) counts_ = *row.counts;
  SortByToken(&counts_);
}

const float* LogitRow::Piece(int32_t at, int32_t n, float* buffer) const {
  if (convert_ != nullptr) {
    convert_(static_cast<const uint16_t*>(values_) + at, n, buffer);
  } else {
    const float* logits = static_cast<const float*>(values_) + at;
    if (bias_.empty() && counts_.empty() && bitmask_ == nullptr) return logits;
    std::copy_n(logits, n, buffer);
  }
  ForTokens(bias_, at, n, [&](int32_t token, float bias) { buffer[token - at] += bias; });
  const Penalties penalties{sampling_->repetition_penalty, sampling_->presence_penalty,
                            sampling_->frequency_penalty};
  ForTokens(counts_, at, n, [&](int32_t token, int32_t count) {
    buffer[token - at] = Penalize(buffer[token - at], count, penalties);
  });
  if (bitmask_ != nullptr) ops_.mask(bitmask_, at, n, buffer);
  return buffer;
}

}  // namespace kvctl
