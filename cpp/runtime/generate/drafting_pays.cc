#include "runtime/generate/drafting_pays.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace kvctl {
namespace {

constexpr size_t kTrials = 3;         // rounds that draft before anything is known
constexpr double kLeastGain = 1.02;   // of tokens per second
constexpr int64_t kFirstWait = 8;     // rounds between trials, which double ...
constexpr int64_t kLongestWait = 64;  // ... up to this

int SizeClass(int64_t texts) { return std::ilogb(static_cast<double>(texts)); }

}  // namespace

void DraftingPays::Recent::Add(double value) {
  if (values_.size() < most_) {
    values_.push_back(value);
  } else {
    values_[count_ % most_] = value;
  }
  ++count_;
}

double DraftingPays::Recent::Median() const {
  std::vector<double> sorted = values_;
  std::nth_element(sorted.begin(), sorted.begin() + sorted.size() / 2, sorted.end());
  return sorted[sorted.size() / 2];
}

double DraftingPays::Recent::Mean() const {
  return std::accumulate(values_.begin(), values_.end(), 0.0) / static_cast<double>(values_.size());
}

bool DraftingPays::Pays() const {
  return gain_.count() < kTrials || gain_.Mean() >= kLeastGain * cost_.Median();
}

bool DraftingPays::Worthwhile(int64_t texts) {
  if (plain_.count(SizeClass(texts)) == 0) return false;  // first what a plain round takes
  if (Pays()) {
    wait_ = next_wait_ = kFirstWait;
    return true;
  }
  if (--wait_ > 0) return false;
  next_wait_ = std::min(2 * next_wait_, kLongestWait);
  wait_ = next_wait_;
  tries_ = true;
  return true;
}

void DraftingPays::Observe(int64_t texts, bool drafted, int64_t emitted, double seconds) {
  if (!drafted) {
    plain_.try_emplace(SizeClass(texts), kMedianOf).first->second.Add(seconds);
    return;
  }
  const auto plain = plain_.find(SizeClass(texts));
  if (plain == plain_.end()) return;      // texts left the round, and so few were never timed
  if (tries_) cost_ = Recent(kMedianOf);  // plain rounds have been timed anew meanwhile
  tries_ = false;
  gain_.Add(static_cast<double>(emitted) / static_cast<double>(texts));
  cost_.Add(seconds / plain->second.Median());
}

}  // namespace kvctl
