#include "core/sampling/vocab_ops.h"

#include <cstring>
#include <limits>

#include "core/support/exact_math.h"
#include "core/support/philox.h"

namespace kvctl {
namespace {

float Max(const float* logits, int32_t n) {
  float max = -std::numeric_limits<float>::infinity();
  for (int32_t i = 0; i < n; ++i) max = logits[i] > max ? logits[i] : max;
  return max;
}

int32_t Find(const float* logits, int32_t n, float value) {
  for (int32_t i = 0; i < n; ++i) {
    if (logits[i] == value) return i;
  }
  return -1;
}

void Mask(const uint32_t* bits, int32_t first, int32_t n, float* logits) {
  for (int32_t i = 0; i < n; ++i) {
    const int32_t token = first + i;
    if ((bits[token / 32] >> (token % 32) & 1u) == 0) {
      logits[i] = -std::numeric_limits<float>::infinity();
    }
  }
}

uint64_t ExpSum(const float* logits, int32_t n, const ExpGrid& grid, float* exps) {
  uint64_t sum = 0;
  for (int32_t i = 0; i < n; ++i) {
    const float e = Exp2Scaled(logits[i], grid);
    if (exps != nullptr) exps[i] = e;
    sum += ToFixed(e);
  }
  return sum;
}

double WeightFromExp(float exp, double factor) {
  return FMA(static_cast<double>(ToFixed(exp)), factor, kRoundDouble) - kRoundDouble;
}

double WeightsFromExps(const float* exps, int32_t n, double factor, double* out) {
  double sum = 0;
  for (int32_t i = 0; i < n; ++i) {
    const double w = WeightFromExp(exps[i], factor);
    if (out != nullptr) out[i] = w;
    sum += w;
  }
  return sum;
}

double WeightsFromLogits(const float* logits, int32_t n, const ExpTerms& terms, double* out) {
  double sum = 0;
  for (int32_t i = 0; i < n; ++i) {
    const double w = WeightFromExp(Exp2Scaled(logits[i], terms.grid), terms.factor);
    if (out != nullptr) out[i] = w;
    sum += w;
  }
  return sum;
}

template <typename T>
double WeightsFromProbs(const T* probs, int32_t n, double* out) {
  double sum = 0;
  bool valid = true;
  for (int32_t i = 0; i < n; ++i) {
    const double p = static_cast<double>(probs[i]);
    valid &= p >= 0 && p <= 1.001;
    const double w = ToGrid(p);
    if (out != nullptr) out[i] = w;
    sum += w;
  }
  return valid ? sum : std::numeric_limits<double>::quiet_NaN();
}

double Rest(double r, double d, double a, double b) {
  const double w = FMA(a, r, -(b * d));
  return w > 0 ? (w + kRoundDouble) - kRoundDouble : 0.0;
}

double Subtract(const double* r, const double* d, int32_t n, double a, double b, double* out) {
  double sum = 0;
  for (int32_t i = 0; i < n; ++i) {
    const double w = Rest(r[i], d[i], a, b);
    if (out != nullptr) out[i] = w;
    sum += w;
  }
  return sum;
}

double RestFromLogits(const float* logits, const float* q, int32_t n, const RestTerms& terms,
                      double* out) {
  uint64_t sum = 0;
  for (int32_t i = 0; i < n; ++i) {
    const uint64_t rest = FixedRest(Exp2Scaled(logits[i], terms.grid), q[i], terms.factors);
    if (out != nullptr) out[i] = static_cast<double>(rest) * kGridOfFixed;
    sum += rest;
  }
  return static_cast<double>(sum) * kGridOfFixed;
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  uint32_t mantissa = half & 0x3ffu;
  uint32_t bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x400000u : 0);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    const float value = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal or zero: exact
    std::memcpy(&bits, &value, sizeof(bits));
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

void FromF16(const uint16_t* values, int32_t n, float* out) {
  for (int32_t i = 0; i < n; ++i) out[i] = HalfToFloat(values[i]);
}

void FromBF16(const uint16_t* values, int32_t n, float* out) {
  for (int32_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(values[i]) << 16;
    std::memcpy(out + i, &bits, sizeof(bits));
  }
}

int32_t GumbelLoop(const float* exps, int32_t first_token, int32_t n, const NoiseKey& key,
                   double* best) {
  int32_t winner = -1;
  for (int32_t i = 0; i < n; ++i) {
    const uint64_t weight = ToFixed(exps[i]);
    if (weight == 0) continue;
    const double score = GumbelScore(first_token + i, weight, key);
    if (score < *best) {
      *best = score;
      winner = first_token + i;
    }
  }
  return winner;
}

}  // namespace

double GumbelScore(int32_t token, uint64_t weight, const NoiseKey& key) {
  const uint32_t id = static_cast<uint32_t>(token);
  const auto words =
      Philox4x32({key.counter0 + id / 2, key.counter[0], key.counter[1], key.counter[2]},
                 key.key[0], key.key[1]);
  const int half = (id & 1) * 2;
  const uint64_t bits = (static_cast<uint64_t>(words[half + 1]) << 32) | words[half];
  return -ExactLog(OpenUniform(bits)) / static_cast<double>(weight);
}

const VocabOps& ScalarVocabOps() {
  static const VocabOps ops = {Max,
                               Find,
                               Mask,
                               ExpSum,
                               WeightsFromExps,
                               WeightsFromLogits,
                               WeightsFromProbs<float>,
                               WeightsFromProbs<double>,
                               Subtract,
                               RestFromLogits,
                               FromF16,
                               FromBF16,
                               GumbelLoop};
  return ops;
}

}  // namespace kvctl
