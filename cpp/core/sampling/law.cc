#include "core/sampling/law.h"

#include <cmath>
#include <limits>
#include <utility>

#include "core/support/exact_math.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

// Whether grid weights of this sum are a law; not if it is NaN.
bool IsLaw(double total) { return std::fabs(total / kProbScale - 1) <= 1e-3; }

template <typename T>
bool FromProbsOf(const Vocab& vocab, const T* probs, double (*weights)(const T*, int32_t, double*),
                 Law* law) {
  law->weights.resize(vocab.size());
  double* out = law->weights.data();
  law->total = vocab.SumBlocks(
      [&](int32_t at, int32_t n) { return weights(probs + at, n, out + at); }, &law->block_sums);
  return IsLaw(law->total);
}

template <typename T>
double SumProbsOf(const Vocab& vocab, const T* probs,
                  double (*weights)(const T*, int32_t, double*)) {
  std::vector<double> sums;
  const double total = vocab.SumBlocks(
      [&](int32_t at, int32_t n) { return weights(probs + at, n, nullptr); }, &sums);
  return IsLaw(total) ? total : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

void Law::Remove(int32_t token) {
  block_sums[token / kVocabBlock] -= weights[token];
  total -= weights[token];
  weights[token] = 0;
}

Vocab::Vocab(int32_t size, const VocabOps& ops, ForBlocks for_blocks)
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

bool Vocab::FromProbs(const float* probs, Law* law) const {
  return FromProbsOf(*this, probs, ops_.weights_from_f32, law);
}

bool Vocab::FromProbs(const double* probs, Law* law) const {
  return FromProbsOf(*this, probs, ops_.weights_from_f64, law);
}

double Vocab::SumProbs(const float* probs) const {
  return SumProbsOf(*this, probs, ops_.weights_from_f32);
}

double Vocab::SumProbs(const double* probs) const {
  return SumProbsOf(*this, probs, ops_.weights_from_f64);
}

void Vocab::OneHot(int32_t token, Law* law) const {
  law->weights.assign(size_, 0.0);
  law->block_sums.assign(num_blocks_, 0.0);
  law->weights[token] = law->block_sums[token / kVocabBlock] = law->total = kProbScale;
}

int32_t Vocab::Pick(const Law& law, uint64_t bits) const {
  double rest = static_cast<double>(Below(static_cast<uint64_t>(law.total), bits));
  for (int32_t b = 0; b < num_blocks_; ++b) {
    if (rest >= law.block_sums[b]) {
      rest -= law.block_sums[b];
      continue;
    }
    for (int32_t i = Begin(b);; ++i) {
      if (rest < law.weights[i]) return i;
      rest -= law.weights[i];
    }
  }
  Throw(ErrorKind::kInternal, "a law's weights sum to less than its total");
}

}  // namespace kvctl
