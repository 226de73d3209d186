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

float SoftmaxScale(double temperature) {
  // The largest scale keeps scale * 0 and scale * -1 finite for any temperature above 0.
  return static_cast<float>(std::min(kLog2E / temperature, 1e30));
}

std::optional<ChosenBlock> ChooseBlock(const std::vector<int32_t>& exponents,
                                       const std::vector<uint64_t>& sums, uint64_t bits) {
  const int32_t exponent = *std::max_element(exponents.begin(), exponents.end());
  if (std::abs(static_cast<float>(exponent)) > kMaxExponent) return std::nullopt;
  uint64_t total = 0;
  for (size_t b = 0; b < sums.size(); ++b) total += ShiftDown(sums[b], exponent - exponents[b]);
  uint64_t rest = Below(total, bits);
  for (size_t b = 0; b < sums.size(); ++b) {
    const int32_t shift = exponent - exponents[b];
    const uint64_t mass = ShiftDown(sums[b], shift);
    // To the block's own grid; below its sum, because mass is rounded down.
    if (rest < mass) return ChosenBlock{static_cast<int64_t>(b), rest << shift};
    rest -= mass;
  }
  Throw(ErrorKind::kInternal, "a row's blocks sum to less than its total");
}

int32_t TokenInBlock(const VocabContext& vocab, const LogitRow& logits, float scale,
                     int32_t exponent, int32_t block, uint64_t rest) {
  const ExpGrid grid = MakeExpGrid(scale, static_cast<float>(exponent));
  const auto weights = [&](int32_t at, int32_t n, uint64_t* out) {
    float buffer[kVocabPiece], exps[kVocabPiece];
    const float* piece = logits.Piece(at, n, buffer);
    const uint64_t sum = vocab.ops().exp_sum(piece, n, grid, out == nullptr ? nullptr : exps);
    for (int32_t i = 0; out != nullptr && i < n; ++i) out[i] = ToFixed(exps[i]);
    return sum;
  };
  return PickToken(VocabContext::Begin(block), vocab.block_size(block), rest, weights);
}

int32_t SoftmaxRow::SampleToken(const VocabContext& vocab, const LogitRow& logits,
                                uint64_t bits) const {
  const auto chosen = ChooseBlock(exponents_, block_sums_, bits);
  const auto block = static_cast<int32_t>(chosen->block);  // Sum returned true
  return TokenInBlock(vocab, logits, scale_, exponents_[block], block, chosen->rest);
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
