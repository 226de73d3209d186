#include "core/sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/support/exact_math.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

[[noreturn]] void ThrowEmpty() {
  Throw(ErrorKind::kValue, "no token is left to choose from: every logit is -inf or NaN, or is ",
        "disallowed by the bitmask");
}

}  // namespace

NoiseKey GumbelKey(const RandomStream& stream, uint32_t position) {
  return {{static_cast<uint32_t>(stream.seed), static_cast<uint32_t>(stream.seed >> 32)},
          {position, static_cast<uint32_t>(stream.request),
           static_cast<uint32_t>(stream.request >> 32)},
          static_cast<uint32_t>(Purpose::kGumbel) << 28};
}

void RowSampler::LoadProbabilities(const RowInput& row, const Sampling& sampling) {
  const bool valid =
      row.type == DType::kFloat64
          ? vocab_.FromProbs(static_cast<const double*>(row.values), &distribution_)
          : row.type == DType::kFloat32 &&
                vocab_.FromProbs(static_cast<const float*>(row.values), &distribution_);
  if (!valid) {
    Throw(ErrorKind::kValue,
          "a row of target probabilities is not a distribution: its entries must be in ",
          "[0, 1] and sum to 1 within 0.001, as float32 or float64");
  }
  const bool greedy = sampling.temperature == 0;
  if (sampling.truncates() || sampling.penalizes() || !sampling.logit_bias.empty() ||
      row.bitmask != nullptr || !(greedy || sampling.temperature == 1)) {
    Throw(ErrorKind::kValue, "probabilities are used as they are: give logits to have them ",
          "processed (temperature may be 1, or 0 for greedy)");
  }
  has_logits_ = false;
  kind_ = Kind::kDistribution;
  if (greedy) {
    const auto best = std::max_element(distribution_.weights.begin(), distribution_.weights.end());
    greedy_ = static_cast<int32_t>(best - distribution_.weights.begin());
    kind_ = Kind::kOneHot;
  }
}

void RowSampler::Load(const RowInput& row, const Sampling& sampling) {
  sampling_ = &sampling;
  summed_ = fused_ = has_exps_ = false;
  if (row.probabilities) return LoadProbabilities(row, sampling);
  logits_.Load(row, sampling);
  has_logits_ = true;
  kind_ = Kind::kLogits;
  if (sampling.temperature > 0) return;
  greedy_ = ArgMaxLogit(vocab_, logits_);
  if (greedy_ < 0) ThrowEmpty();
  kind_ = Kind::kOneHot;
}

// Computes in one pass what samples and single probabilities need. False if one pass cannot.
bool RowSampler::NeedSums() {
  if (summed_) return fused_;
  summed_ = true;
  fused_ =
      !sampling_->truncates() && row_.Sum(vocab_, logits_, SoftmaxScale(sampling_->temperature));
  return fused_;
}

void RowSampler::ExpPiece(int32_t at, int32_t n, float* out) const {
  float buffer[kVocabPiece];
  const float* logits = logits_.Piece(at, n, buffer);
  if (shared_) {
    const float share = std::ldexp(1.0f, kExpBits);
    for (int32_t i = 0; i < n; ++i) out[i] = logits[i] == shared_max_ ? share : 0.0f;
  } else {
    vocab_.ops().exp_sum(logits, n, grid_, out);
  }
  if (!cut_off_) return;
  for (int32_t i = 0; i < n; ++i) {
    if (!cut_.keeps(out[i], at + i)) out[i] = 0;
  }
}

uint64_t RowSampler::SumExps() {
  const auto sum = [&](int32_t begin, int32_t size) {
    uint64_t total = 0;
    ForPieces(begin, size, [&](int32_t at, int32_t n) {
      float exps[kVocabPiece];
      if (shared_ || cut_off_) {
        ExpPiece(at, n, exps);
        for (int32_t i = 0; i < n; ++i) total += ToFixed(exps[i]);
      } else {
        total += vocab_.ops().exp_sum(logits_.Piece(at, n, exps), n, grid_, nullptr);
      }
    });
    return total;
  };
  return vocab_.SumBlocks(sum, &exp_sums_);
}

void RowSampler::NeedExps() {
  if (has_exps_) return;
  shared_max_ = MaxLogit(vocab_, logits_);
  if (shared_max_ == -kInfinity) ThrowEmpty();
  const float scale = SoftmaxScale(sampling_->temperature),
              exponent = std::ceil(shared_max_ * scale);
  shared_ = !(std::fabs(exponent) < kMaxExponent);
  if (!shared_) grid_ = MakeExpGrid(scale, exponent);
  cut_off_ = false;
  if (sampling_->truncates()) {
    const uint64_t total = SumExps();
    cut_ = FindCut(*sampling_, vocab_.size(), total,
                   [this](int32_t at, int32_t n, float* out) { ExpPiece(at, n, out); });
    cut_off_ = true;
  }
  if (shared_ || cut_off_) exp_total_ = SumExps();
  has_exps_ = true;
}

void RowSampler::NeedWeights() {
  if (kind_ == Kind::kLogits && !NeedSums()) NeedExps();
}

double RowSampler::Weights(int32_t at, int32_t n, double* out) const {
  float piece[kVocabPiece];
  switch (kind_) {
    case Kind::kLogits: {
      if (fused_) {
        return vocab_.ops().weights_from_logits(logits_.Piece(at, n, piece), n,
                                                row_.terms(at / kVocabBlock), out);
      }
      ExpPiece(at, n, piece);
      const double factor = kProbScale / static_cast<double>(exp_total_);
      return vocab_.ops().weights_from_exps(piece, n, factor, out);
    }
    case Kind::kOneHot: {
      const bool here = greedy_ >= at && greedy_ < at + n;
      if (out != nullptr) std::fill_n(out, n, 0.0);
      if (out != nullptr && here) out[greedy_ - at] = kProbScale;
      return here ? kProbScale : 0.0;
    }
    default: {
      double sum = 0;
      for (int32_t i = 0; i < n; ++i) sum += distribution_.weights[at + i];
      if (out != nullptr) std::copy_n(distribution_.weights.data() + at, n, out);
      return sum;
    }
  }
}

double RowSampler::WeightsLess(const float* probs, double a, double b, int32_t at, int32_t n,
                               double* out) const {
  const VocabOps& ops = vocab_.ops();
  if (kind_ == Kind::kLogits && fused_) {
    float piece[kVocabPiece];
    const ExpTerms terms = row_.terms(at / kVocabBlock);
    return ops.rest_from_logits(logits_.Piece(at, n, piece), probs + at, n,
                                {terms.grid, MakeRestFactors(a * terms.factor, b)}, out);
  }
  double r[kVocabPiece], d[kVocabPiece];
  Weights(at, n, r);
  ops.weights_from_f32(probs + at, n, d);
  return ops.subtract(r, d, n, a, b, out);
}

void RowSampler::FillDistribution(Distribution* distribution) {
  NeedWeights();
  distribution->weights.resize(vocab_.size());
  const auto fill = [&](int32_t begin, int32_t size) {
    double sum = 0;
    ForPieces(begin, size, [&](int32_t at, int32_t n) {
      sum += Weights(at, n, distribution->weights.data() + at);
    });
    return sum;
  };
  distribution->total = vocab_.SumBlocks(fill, &distribution->block_sums);
}

int32_t RowSampler::SampleToken(uint64_t bits) {
  if (kind_ == Kind::kOneHot) return greedy_;
  if (kind_ == Kind::kDistribution) return vocab_.SampleToken(distribution_, bits);
  if (NeedSums()) return row_.SampleToken(vocab_, logits_, bits);
  NeedExps();
  uint64_t rest = Below(exp_total_, bits);
  int32_t block = 0;
  for (; rest >= exp_sums_[block]; ++block) rest -= exp_sums_[block];
  const auto weights = [&](int32_t at, int32_t n, uint64_t* out) {
    float exps[kVocabPiece];
    ExpPiece(at, n, exps);
    uint64_t sum = 0;
    for (int32_t i = 0; i < n; ++i) {
      const uint64_t weight = ToFixed(exps[i]);
      if (out != nullptr) out[i] = weight;
      sum += weight;
    }
    return sum;
  };
  return PickToken(VocabContext::Begin(block), vocab_.block_size(block), rest, weights);
}

int32_t RowSampler::Sample(const RandomStream& stream, uint32_t position, Noise noise) {
  if (noise == Noise::kUniform) return SampleToken(stream.Bits(Purpose::kToken, position, 0));
  int32_t token;
  SampleGumbel(GumbelKey(stream, position), 1, &token);
  return token;
}

void RowSampler::SampleGumbel(const NoiseKey& key, int32_t n, int32_t* tokens) {
  std::fill_n(tokens, n, -1);
  if (kind_ == Kind::kOneHot) {
    if (n > 0) tokens[0] = greedy_;
    return;
  }
  if (kind_ == Kind::kLogits) NeedExps();
  struct Best {
    double score = kInfinity;
    int32_t token = -1;
  };
  for (int32_t i = 0; i < n; ++i) {
    std::vector<Best> best(vocab_.num_blocks());
    vocab_.ForEachBlock([&](int32_t b) {
      ForPieces(VocabContext::Begin(b), vocab_.block_size(b), [&](int32_t at, int32_t size) {
        float exps[kVocabPiece];
        if (kind_ ==
            Kind::kDistribution) {  // grid weights, brought down to where floats hold what counts
          for (int32_t j = 0; j < size; ++j) {
            exps[j] = static_cast<float>(distribution_.weights[at + j] / kGridOfFixed);
          }
        } else {
          ExpPiece(at, size, exps);
        }
        for (int32_t j = 0; j < i; ++j) {
          if (tokens[j] >= at && tokens[j] < at + size) exps[tokens[j] - at] = 0;
        }
        const int32_t token = vocab_.ops().gumbel(exps, at, size, key, &best[b].score);
        if (token >= 0) best[b].token = token;
      });
    });
    Best winner;
    for (const Best& candidate : best) {
      if (candidate.score < winner.score) winner = candidate;
    }
    if (winner.token < 0) break;
    tokens[i] = winner.token;
  }
}

double RowSampler::Prob(int32_t token) {
  if (kind_ == Kind::kOneHot) return token == greedy_ ? 1.0 : 0.0;
  if (kind_ == Kind::kDistribution) return distribution_.prob(token);
  if (NeedSums()) return row_.Prob(logits_, token);
  NeedExps();
  float exp;
  ExpPiece(token, 1, &exp);
  return static_cast<double>(ToFixed(exp)) / static_cast<double>(exp_total_);
}

double RowSampler::LogProb(int32_t token) {
  double prob;
  if (kind_ != Kind::kOneHot) {
    prob = Prob(token);
  } else if (!has_logits_) {
    prob = distribution_.prob(token);
  } else {
    // Infinite logits have no softmax; the one chosen is then as good as certain.
    prob = row_.Sum(vocab_, logits_, SoftmaxScale(1)) ? row_.Prob(logits_, token) : 1.0;
  }
  return prob > 0 ? ExactLog(prob) : -kInfinity;
}

}  // namespace kvctl
