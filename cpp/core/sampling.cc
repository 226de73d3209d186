#include "core/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/exact_math.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void CheckRange(const char* name, double value, double low, double high, const char* allowed) {
  if (!(value >= low && value <= high)) {
    Throw(ErrorKind::kValue, name, " must be ", allowed, ", got ", value);
  }
}

// The largest scale keeps scale * 0 and scale * -1 finite for any temperature above 0.
float Scale(double temperature) { return static_cast<float>(std::min(kLog2E / temperature, 1e30)); }

[[noreturn]] void ThrowEmpty() {
  Throw(ErrorKind::kValue, "no token is left to choose from: every logit is -inf or NaN, or is ",
        "disallowed by the bitmask");
}

}  // namespace

void Sampling::Check(int32_t vocab_size) const {
  CheckRange("temperature", temperature, 0, 1e30, "at least 0");
  CheckRange("top_k", top_k, 0, std::numeric_limits<int32_t>::max(), "at least 0 (0: all tokens)");
  CheckRange("top_p", top_p, std::numeric_limits<double>::min(), 1, "in (0, 1]");
  CheckRange("min_p", min_p, 0, 1, "in [0, 1]");
  CheckRange("repetition_penalty", repetition_penalty, 1e-6, 1e6, "positive");
  CheckRange("presence_penalty", presence_penalty, -1e6, 1e6, "finite");
  CheckRange("frequency_penalty", frequency_penalty, -1e6, 1e6, "finite");
  for (const auto& [token, bias] : logit_bias) {
    if (token < 0 || token >= vocab_size) {
      Throw(ErrorKind::kIndex, "logit_bias names token ", token, ", but the vocabulary has ",
            vocab_size);
    }
    if (std::isnan(bias)) Throw(ErrorKind::kValue, "the logit_bias of token ", token, " is NaN");
  }
}

NoiseKey GumbelKey(const RandomStream& stream, uint32_t position) {
  return {{static_cast<uint32_t>(stream.seed), static_cast<uint32_t>(stream.seed >> 32)},
          {position, static_cast<uint32_t>(stream.request),
           static_cast<uint32_t>(stream.request >> 32)},
          static_cast<uint32_t>(Purpose::kGumbel) << 28};
}

const float* RowSampler::Logits(const RowInput& row) {
  if (row.type == RowType::kFloat32) return static_cast<const float*>(row.values);
  if (row.type == RowType::kFloat64) {
    Throw(ErrorKind::kType, "logits must be float32, float16 or bfloat16; float64 holds laws");
  }
  scratch_.resize(vocab_.size());
  const auto convert =
      row.type == RowType::kFloat16 ? vocab_.ops().from_f16 : vocab_.ops().from_bf16;
  convert(static_cast<const uint16_t*>(row.values), vocab_.size(), scratch_.data());
  return scratch_.data();
}

const float* RowSampler::Modified(const float* logits, const RowInput& row,
                                  const Sampling& sampling) {
  const bool penalizes = sampling.penalizes() && row.counts != nullptr && !row.counts->empty();
  if (sampling.logit_bias.empty() && !penalizes && row.bitmask == nullptr) return logits;
  scratch_.resize(vocab_.size());
  if (logits != scratch_.data()) std::copy_n(logits, vocab_.size(), scratch_.data());
  for (const auto& [token, bias] : sampling.logit_bias) scratch_[token] += bias;
  if (penalizes) {
    for (const auto& [token, count] : *row.counts) {
      double logit = scratch_[token];
      logit = logit > 0 ? logit / sampling.repetition_penalty : logit * sampling.repetition_penalty;
      logit -= sampling.presence_penalty;
      logit -= sampling.frequency_penalty * count;
      scratch_[token] = static_cast<float>(logit);
    }
  }
  if (row.bitmask != nullptr) {
    for (int32_t i = 0; i < vocab_.size(); ++i) {
      if ((row.bitmask[i / 32] >> (i % 32) & 1u) == 0) scratch_[i] = -kInfinity;
    }
  }
  return scratch_.data();
}

void RowSampler::LoadProbabilities(const RowInput& row, const Sampling& sampling) {
  const bool valid = row.type == RowType::kFloat64
                         ? vocab_.FromProbs(static_cast<const double*>(row.values), &law_)
                         : row.type == RowType::kFloat32 &&
                               vocab_.FromProbs(static_cast<const float*>(row.values), &law_);
  if (!valid) {
    Throw(ErrorKind::kValue, "a row of target probabilities is not a law: its entries must be in ",
          "[0, 1] and sum to 1 within 0.001, as float32 or float64");
  }
  const bool greedy = sampling.temperature == 0;
  if (sampling.truncates() || sampling.penalizes() || !sampling.logit_bias.empty() ||
      row.bitmask != nullptr || !(greedy || sampling.temperature == 1)) {
    Throw(ErrorKind::kValue, "probabilities are used as they are: give logits to have them ",
          "processed (temperature may be 1, or 0 for greedy)");
  }
  logits_ = nullptr;
  state_ = State::kLaw;
  if (greedy) {
    const auto best = std::max_element(law_.weights.begin(), law_.weights.end());
    greedy_ = static_cast<int32_t>(best - law_.weights.begin());
    state_ = State::kOneHot;
  }
}

void RowSampler::Load(const RowInput& row, const Sampling& sampling) {
  sampling_ = &sampling;
  if (row.probabilities) return LoadProbabilities(row, sampling);
  logits_ = Modified(Logits(row), row, sampling);
  state_ = State::kLogits;
  if (sampling.temperature > 0) return;
  greedy_ = vocab_.ArgMax(logits_);
  if (greedy_ < 0) ThrowEmpty();
  state_ = State::kOneHot;
}

// What single probabilities and samples need: one pass that stores nothing.
void RowSampler::NeedSums() {
  if (state_ != State::kLogits) return;
  if (!sampling_->truncates() && vocab_.SumExps(logits_, Scale(sampling_->temperature), &row_)) {
    state_ = State::kFused;
  } else {
    NeedExps();
  }
}

// What a whole law needs: every exponential, at the power of two of the largest.
void RowSampler::NeedExps() {
  if (state_ != State::kLogits && state_ != State::kFused) return;
  exps_.resize(vocab_.size());
  const float scale = Scale(sampling_->temperature);
  const float max = state_ == State::kFused ? 0.0f : vocab_.Max(logits_);
  if (max == -kInfinity) ThrowEmpty();
  const float exponent =
      state_ == State::kFused ? static_cast<float>(row_.exponent) : std::ceil(max * scale);
  state_ = State::kExps;
  if (std::fabs(exponent) < kMaxExponent) {
    exp_total_ = vocab_.Exps(logits_, scale, exponent, exps_.data());
  } else {
    exp_total_ = 0;
    const float share = std::ldexp(1.0f, kExpBits);
    for (int32_t i = 0; i < vocab_.size(); ++i) {
      exps_[i] = logits_[i] == max ? share : 0.0f;
      exp_total_ += ToFixed(exps_[i]);
    }
  }
  if (sampling_->truncates()) {
    exp_total_ = Truncate(*sampling_, vocab_.size(), exp_total_, exps_.data());
  }
}

int32_t RowSampler::Pick(uint64_t bits) {
  NeedSums();
  switch (state_) {
    case State::kOneHot:
      return greedy_;
    case State::kFused:
      return vocab_.Pick(logits_, row_, bits);
    case State::kExps:
      return vocab_.Pick(exps_.data(), exp_total_, bits);
    default:
      return vocab_.Pick(law_, bits);
  }
}

int32_t RowSampler::Sample(const RandomStream& stream, uint32_t position, Noise noise) {
  if (noise == Noise::kUniform) return Pick(stream.Bits(Purpose::kToken, position, 0));
  int32_t token;
  SampleGumbel(GumbelKey(stream, position), 1, &token);
  return token;
}

void RowSampler::SampleGumbel(const NoiseKey& key, int32_t n, int32_t* tokens) {
  std::fill_n(tokens, n, -1);
  if (state_ == State::kOneHot) {
    if (n > 0) tokens[0] = greedy_;
    return;
  }
  NeedExps();
  if (state_ == State::kLaw) {  // grid weights, brought down to where floats hold what counts
    exps_.resize(vocab_.size());
    for (int32_t i = 0; i < vocab_.size(); ++i) {
      exps_[i] = static_cast<float>(law_.weights[i] * 0x1p-5);
    }
  }
  std::vector<float> taken;
  for (int32_t i = 0; i < n; ++i) {
    tokens[i] = vocab_.Gumbel(exps_.data(), key);
    if (tokens[i] < 0) break;
    taken.push_back(exps_[tokens[i]]);
    exps_[tokens[i]] = 0;
  }
  for (size_t i = 0; i < taken.size(); ++i) exps_[tokens[i]] = taken[i];
}

double RowSampler::Prob(int32_t token) {
  NeedSums();
  switch (state_) {
    case State::kOneHot:
      return token == greedy_ ? 1.0 : 0.0;
    case State::kFused:
      return vocab_.Prob(logits_, row_, token);
    case State::kExps:
      return static_cast<double>(ToFixed(exps_[token])) / static_cast<double>(exp_total_);
    default:
      return law_.prob(token);
  }
}

void RowSampler::FillLaw(Law* law) {
  NeedExps();
  switch (state_) {
    case State::kOneHot:
      vocab_.OneHot(greedy_, law);
      break;
    case State::kExps:
      vocab_.FromExps(exps_.data(), exp_total_, law);
      break;
    default:
      *law = law_;
  }
}

double RowSampler::LogProb(int32_t token) {
  double prob;
  if (state_ != State::kOneHot) {
    prob = Prob(token);
  } else if (logits_ == nullptr) {
    prob = law_.prob(token);
  } else {
    // Infinite logits have no softmax; the one chosen is then as good as certain.
    prob = vocab_.SumExps(logits_, Scale(1), &row_) ? vocab_.Prob(logits_, row_, token) : 1.0;
  }
  return prob > 0 ? ExactLog(prob) : -kInfinity;
}

}  // namespace kvctl
