#include "core/sampling/softmax_row.h"

#include <cmath>

#include "core/support/exact_math.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint64_t ShiftDown(uint64_t sum, int32_t shift) { return shift >= 64 ? 0 : sum >> shift; }

std::vector<float> BlockMaxima(const VocabContext& vocab, const LogitRow& logits) {
  std::vector<float> maxima(vocab.num_blocks());
  vocab.ForEachBlock([&](int32_t b) {
    float buffer[kVocabBlock];
    const int32_t n = vocab.block_size(b);
    maxima[b] = vocab.ops().max(logits.Piece(VocabContext::Begin(b), n, buffer), n);
  });
  return maxima;
}

}  // namespace

float MaxLogit(const VocabContext& vocab, const LogitRow& logits) {
  const std::vector<float> maxima = BlockMaxima(vocab, logits);
  return *std::max_element(maxima.begin(), maxima.end());
}

int32_t ArgMaxLogit(const VocabContext& vocab, const LogitRow& logits) {
  const std::vector<float> maxima = BlockMaxima(vocab, logits);
  const auto best = std::max_element(maxima.begin(), maxima.end());  // the first of equals
  if (*best == -kInfinity) return -1;
  const int32_t block = static_cast<int32_t>(best - maxima.begin());
  const int32_t at = VocabContext::Begin(block), n = vocab.block_size(block);
  float buffer[kVocabBlock];
  return at + vocab.ops().find(logits.Piece(at, n, buffer), n, *best);
}

bool SoftmaxRow::Sum(const VocabContext& vocab, const LogitRow& logits, float scale) {
  scale_ = scale;
  exponents_.resize(vocab.num_blocks());
  block_sums_.resize(vocab.num_blocks());
  vocab.ForEachBlock([&](int32_t b) {
    float buffer[kVocabBlock];
    const int32_t n = vocab.block_size(b);
    const float* block = logits.Piece(VocabContext::Begin(b), n, buffer);
    const float top = vocab.ops().max(block, n) * scale;
    block_sums_[b] = 0;
    if (!(std::fabs(top) < kMaxExponent)) {
      // A block without a finite logit weighs nothing beside others; a huge one spoils the row.
      exponents_[b] = top < 0 ? kEmptyBlock : std::numeric_limits<int32_t>::max();
      return;
    }
    const float exponent = std::ceil(top);
    exponents_[b] = static_cast<int32_t>(exponent);
    block_sums_[b] = vocab.ops().exp_sum(block, n, MakeExpGrid(scale, exponent), nullptr);
  });
  exponent_ = *std::max_element(exponents_.begin(), exponents_.end());
  if (std::abs(static_cast<float>(exponent_)) > kMaxExponent) return false;
  total_ = 0;
  for (int32_t b = 0; b < vocab.num_blocks(); ++b) {
    total_ += ShiftDown(block_sums_[b], exponent_ - exponents_[b]);
  }
  return true;
}

int32_t SoftmaxRow::SampleToken(const VocabContext& vocab, const LogitRow& logits,
                                uint64_t bits) const {
  uint64_t rest = Below(total_, bits);
  for (int32_t b = 0; b < vocab.num_blocks(); ++b) {
    const int32_t shift = exponent_ - exponents_[b];
    const uint64_t mass = ShiftDown(block_sums_[b], shift);
    if (rest >= mass) {
      rest -= mass;
      continue;
    }
    rest <<= shift;  // to the block's own grid; below its sum, because mass is rounded down
    const ExpGrid grid = MakeExpGrid(scale_, static_cast<float>(exponents_[b]));
    const auto weights = [&](int32_t at, int32_t n, uint64_t* out) {
      float buffer[kVocabPiece], exps[kVocabPiece];
      const float* piece = logits.Piece(at, n, buffer);
      const uint64_t sum = vocab.ops().exp_sum(piece, n, grid, out == nullptr ? nullptr : exps);
      for (int32_t i = 0; out != nullptr && i < n; ++i) out[i] = ToFixed(exps[i]);
      return sum;
    };
    return PickToken(VocabContext::Begin(b), vocab.block_size(b), rest, weights);
  }
  Throw(ErrorKind::kInternal, "a row's blocks sum to less than its total");
}

ExpTerms SoftmaxRow::terms(int32_t block) const {
  if (exponents_[block] == kEmptyBlock) return {MakeExpGrid(scale_, 0), 0};
  return {MakeExpGrid(scale_, static_cast<float>(exponents_[block])),
          std::ldexp(kProbScale / static_cast<double>(total_), exponents_[block] - exponent_)};
}

double SoftmaxRow::Prob(const LogitRow& logits, int32_t token) const {
  const int32_t exponent = exponents_[token / kVocabBlock];
  if (exponent == kEmptyBlock) return 0;
  const ExpGrid grid = MakeExpGrid(scale_, static_cast<float>(exponent));
  const double weight = static_cast<double>(ToFixed(Exp2Scaled(logits[token], grid)));
  return std::ldexp(weight, exponent - exponent_) / static_cast<double>(total_);
}

}  // namespace kvctl
