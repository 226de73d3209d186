#include "core/law.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/exact_math.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr int32_t kEmptyBlock = std::numeric_limits<int32_t>::min() / 2;

// A number in [0, total) from 64 random bits.
uint64_t Below(uint64_t total, uint64_t bits) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(bits) * total) >> 64);
}

// Whether grid weights of this sum are a law; not if it is NaN.
bool IsLaw(double total) { return std::fabs(total / kProbScale - 1) <= 1e-3; }

uint64_t ShiftDown(uint64_t sum, int32_t shift) { return shift >= 64 ? 0 : sum >> shift; }

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

int32_t Vocab::block_size(int32_t block) const {
  return std::min(kVocabBlock, size_ - block * kVocabBlock);
}

float Vocab::Max(const float* logits) const {
  std::vector<float> maxima(num_blocks_);
  for_blocks_(num_blocks_,
              [&](int32_t b) { maxima[b] = ops_.max(logits + b * kVocabBlock, block_size(b)); });
  return *std::max_element(maxima.begin(), maxima.end());
}

int32_t Vocab::ArgMax(const float* logits) const {
  std::vector<float> maxima(num_blocks_);
  for_blocks_(num_blocks_,
              [&](int32_t b) { maxima[b] = ops_.max(logits + b * kVocabBlock, block_size(b)); });
  const auto best = std::max_element(maxima.begin(), maxima.end());  // the first of equals
  if (*best == -std::numeric_limits<float>::infinity()) return -1;
  const int32_t block = static_cast<int32_t>(best - maxima.begin());
  return block * kVocabBlock + ops_.find(logits + block * kVocabBlock, block_size(block), *best);
}

bool Vocab::SumExps(const float* logits, float scale, ExpRow* row) const {
  row->scale = scale;
  row->exponents.resize(num_blocks_);
  row->block_sums.resize(num_blocks_);
  for_blocks_(num_blocks_, [&](int32_t b) {
    const float* block = logits + b * kVocabBlock;
    const float top = ops_.max(block, block_size(b)) * scale;
    row->block_sums[b] = 0;
    if (!(std::fabs(top) < kMaxExponent)) {
      // A block without a finite logit weighs nothing beside others; a huge one spoils the row.
      row->exponents[b] = top < 0 ? kEmptyBlock : std::numeric_limits<int32_t>::max();
      return;
    }
    const float exponent = std::ceil(top);
    row->exponents[b] = static_cast<int32_t>(exponent);
    row->block_sums[b] = ops_.exp_sum(block, block_size(b), scale, exponent, nullptr);
  });
  row->exponent = *std::max_element(row->exponents.begin(), row->exponents.end());
  if (std::abs(static_cast<float>(row->exponent)) > kMaxExponent) return false;
  row->total = 0;
  for (int32_t b = 0; b < num_blocks_; ++b) {
    row->total += ShiftDown(row->block_sums[b], row->exponent - row->exponents[b]);
  }
  return true;
}

int32_t Vocab::Pick(const float* logits, const ExpRow& row, uint64_t bits) const {
  uint64_t rest = Below(row.total, bits);
  for (int32_t b = 0; b < num_blocks_; ++b) {
    const int32_t shift = row.exponent - row.exponents[b];
    const uint64_t mass = ShiftDown(row.block_sums[b], shift);
    if (rest >= mass) {
      rest -= mass;
      continue;
    }
    rest <<= shift;  // to the block's own grid; below its sum, because mass is rounded down
    float exps[kVocabBlock];
    const float* block = logits + b * kVocabBlock;
    ops_.exp_sum(block, block_size(b), row.scale, static_cast<float>(row.exponents[b]), exps);
    for (int32_t i = 0;; ++i) {
      const uint64_t weight = ToFixed(exps[i]);
      if (rest < weight) return b * kVocabBlock + i;
      rest -= weight;
    }
  }
  Throw(ErrorKind::kInternal, "a row's blocks sum to less than its total");
}

double Vocab::Prob(const float* logits, const ExpRow& row, int32_t token) const {
  const int32_t exponent = row.exponents[token / kVocabBlock];
  if (exponent == kEmptyBlock) return 0;
  const double weight = static_cast<double>(
      ToFixed(Exp2Scaled(logits[token], row.scale, static_cast<float>(exponent))));
  return std::ldexp(weight, exponent - row.exponent) / static_cast<double>(row.total);
}

uint64_t Vocab::Exps(const float* logits, float scale, float exponent, float* exps) const {
  std::vector<uint64_t> sums(num_blocks_);
  for_blocks_(num_blocks_, [&](int32_t b) {
    const int32_t at = b * kVocabBlock;
    sums[b] = ops_.exp_sum(logits + at, block_size(b), scale, exponent, exps + at);
  });
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}

int32_t Vocab::Pick(const float* exps, uint64_t total, uint64_t bits) const {
  uint64_t rest = Below(total, bits);
  for (int32_t i = 0; i < size_; ++i) {
    const uint64_t weight = ToFixed(exps[i]);
    if (rest < weight) return i;
    rest -= weight;
  }
  Throw(ErrorKind::kInternal, "a row's weights sum to less than its total");
}

int32_t Vocab::Gumbel(const float* exps, const NoiseKey& key) const {
  struct Best {
    double score = std::numeric_limits<double>::infinity();
    int32_t token = -1;
  };
  std::vector<Best> best(num_blocks_);
  for_blocks_(num_blocks_, [&](int32_t b) {
    const int32_t at = b * kVocabBlock;
    best[b].token = ops_.gumbel(exps + at, at, block_size(b), key, &best[b].score);
  });
  Best winner;
  for (const Best& candidate : best) {
    if (candidate.score < winner.score) winner = candidate;
  }
  return winner.token;
}

void Vocab::Resize(Law* law) const {
  law->weights.resize(size_);
  law->block_sums.resize(num_blocks_);
}

void Vocab::SetTotal(Law* law) const {
  law->total = 0;
  for (double sum : law->block_sums) law->total += sum;
}

void Vocab::FromExps(const float* exps, uint64_t total, Law* law) const {
  Resize(law);
  const double factor = kProbScale / static_cast<double>(total);
  for_blocks_(num_blocks_, [&](int32_t b) {
    const int32_t at = b * kVocabBlock;
    law->block_sums[b] =
        ops_.weights_from_exps(exps + at, block_size(b), factor, law->weights.data() + at);
  });
  SetTotal(law);
}

template <typename T>
bool Vocab::FromProbsOf(const T* probs, Law* law,
                        double (*weights)(const T*, int32_t, double*)) const {
  Resize(law);
  for_blocks_(num_blocks_, [&](int32_t b) {
    const int32_t at = b * kVocabBlock;
    law->block_sums[b] = weights(probs + at, block_size(b), law->weights.data() + at);
  });
  SetTotal(law);
  return IsLaw(law->total);
}

bool Vocab::FromProbs(const float* probs, Law* law) const {
  return FromProbsOf(probs, law, ops_.weights_from_f32);
}

bool Vocab::FromProbs(const double* probs, Law* law) const {
  return FromProbsOf(probs, law, ops_.weights_from_f64);
}

template <typename T>
double Vocab::SumProbsOf(const T* probs, double (*weights)(const T*, int32_t, double*)) const {
  std::vector<double> sums(num_blocks_);
  for_blocks_(num_blocks_, [&](int32_t b) {
    sums[b] = weights(probs + b * kVocabBlock, block_size(b), nullptr);
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return IsLaw(total) ? total : std::numeric_limits<double>::quiet_NaN();
}

double Vocab::SumProbs(const float* probs) const {
  return SumProbsOf(probs, ops_.weights_from_f32);
}

double Vocab::SumProbs(const double* probs) const {
  return SumProbsOf(probs, ops_.weights_from_f64);
}

void Vocab::OneHot(int32_t token, Law* law) const {
  law->weights.assign(size_, 0.0);
  law->block_sums.assign(num_blocks_, 0.0);
  law->weights[token] = law->block_sums[token / kVocabBlock] = law->total = kProbScale;
}

double Vocab::Subtract(const Law& r, double a, const Law& d, double d_total, Law* out) const {
  Resize(out);
  const double r_factor = a * kProbScale / r.total;
  const double d_factor = kProbScale / d_total;
  for_blocks_(num_blocks_, [&](int32_t b) {
    const int32_t at = b * kVocabBlock;
    out->block_sums[b] = ops_.subtract(r.weights.data() + at, d.weights.data() + at, block_size(b),
                                       r_factor, d_factor, out->weights.data() + at);
  });
  SetTotal(out);
  return out->total / kProbScale;
}

int32_t Vocab::Pick(const Law& law, uint64_t bits) const {
  double rest = static_cast<double>(Below(static_cast<uint64_t>(law.total), bits));
  for (int32_t b = 0; b < num_blocks_; ++b) {
    if (rest >= law.block_sums[b]) {
      rest -= law.block_sums[b];
      continue;
    }
    for (int32_t i = b * kVocabBlock;; ++i) {
      if (rest < law.weights[i]) return i;
      rest -= law.weights[i];
    }
  }
  Throw(ErrorKind::kInternal, "a law's weights sum to less than its total");
}

}  // namespace kvctl
