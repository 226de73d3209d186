#include "core/sampling/distribution.h"

#include <cmath>
#include <limits>
#include <utility>

#include "core/support/exact_math.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

// Whether grid weights of this sum are a distribution; not if it is NaN.
bool IsDistribution(double total) { return std::fabs(total / kProbScale - 1) <= 1e-3; }

template <typename T>
bool FromProbsOf(const VocabContext& vocab, const T* probs,
                 double (*weights)(const T*, int32_t, double*), Distribution* distribution) {
  distribution->weights.resize(vocab.size());
  double* out = distribution->weights.data();
  distribution->total =
      vocab.SumBlocks([&](int32_t at, int32_t n) { return weights(probs + at, n, out + at); },
                      &distribution->block_sums);
  return IsDistribution(distribution->total);
}

template <typename T>
double SumProbsOf(const VocabContext& vocab, const T* probs,
                  double (*weights)(const T*, int32_t, double*)) {
  std::vector<double> sums;
  const double total = vocab.SumBlocks(
      [&](int32_t at, int32_t n) { return weights(probs + at, n, nullptr); }, &sums);
  return IsDistribution(total) ? total : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

void Distribution::Remove(int32_t token) {
  block_sums[token / kVocabBlock] -= weights[token];
  total -= weights[token];
  weights[token] = 0;
}

VocabContext::VocabContext(int32_t size, const VocabOps& ops, ForBlocks for_blocks)
    : size_(size),
      num_blocks_((size + kVocabBlock - 1) / kVocabBlock),
      ops_(ops),
      for_blocks_(std::move(for_blocks)) {
  if (size < 1 || size > kMaxVocab) {
    Throw(ErrorKind::kValue, "a vocabulary can have 1 to ", kMaxVocab, " tokens, got ", size);
  }
  if (!for_blocks_) {
    for_blocks_ = [](int32_t n, const std::function<void(int32_t)>& body) {
      for (int32_t i = 0; i < n; ++i) body(i);
    };
  }
}

bool VocabContext::FromProbs(const float* probs, Distribution* distribution) const {
  return FromProbsOf(*this, probs, ops_.weights_from_f32, distribution);
}

bool VocabContext::FromProbs(const double* probs, Distribution* distribution) const {
  return FromProbsOf(*this, probs, ops_.weights_from_f64, distribution);
}

double VocabContext::SumProbs(const float* probs) const {
  return SumProbsOf(*this, probs, ops_.weights_from_f32);
}

double VocabContext::SumProbs(const double* probs) const {
  return SumProbsOf(*this, probs, ops_.weights_from_f64);
}

void VocabContext::OneHot(int32_t token, Distribution* distribution) const {
  distribution->weights.assign(size_, 0.0);
  distribution->block_sums.assign(num_blocks_, 0.0);
  distribution->weights[token] = distribution->block_sums[token / kVocabBlock] =
      distribution->total = kProbScale;
}

int32_t VocabContext::SampleToken(const Distribution& distribution, uint64_t bits) const {
  double rest = static_cast<double>(Below(static_cast<uint64_t>(distribution.total), bits));
  for (int32_t b = 0; b < num_blocks_; ++b) {
    if (rest >= distribution.block_sums[b]) {
      rest -= distribution.block_sums[b];
      continue;
    }
    for (int32_t i = Begin(b);; ++i) {
      if (rest < distribution.weights[i]) return i;
      rest -= distribution.weights[i];
    }
  }
  Throw(ErrorKind::kInternal, "a distribution's weights sum to less than its total");
}

}  // namespace kvctl
