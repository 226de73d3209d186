/*!
 * \file kernels/cpu/sampling/vocab_loops-inl.h
 * \brief The loops of core/sampling/vocab_ops.h over vectors: operation for operation what the
 * scalar ones do.
 */
#ifndef KVCTL_KERNELS_CPU_SAMPLING_VOCAB_LOOPS_INL_H_
#define KVCTL_KERNELS_CPU_SAMPLING_VOCAB_LOOPS_INL_H_

#include <cstdint>

#include "core/sampling/vocab_ops.h"
#include "core/support/exact_math.h"
#include "kernels/convert.h"
#include "kernels/cpu/sampling/vocab_vectors-inl.h"

namespace kvctl {
namespace {

constexpr uint32_t kMostProbBits = 0x3f8020c4u;  // the largest float up to 1.001

float MaxLoop(const float* logits, int32_t n) {
  // As many as hide the latency of a maximum behind the loads of a row in the second-level cache.
  constexpr int kCount = 8;
  Vec max[kCount];
  for (Vec& one : max) one = Set(-kInfinity);
  // If either operand is NaN, Max returns the second.
  if (n < kLanes) {
    max[0] = Max(LoadSome(logits, n, -kInfinity), max[0]);
  } else {
    // The ends take a vector each, which may overlap the others: a row of an array of NumPy's
    // begins anywhere, and loads that cross cache lines take twice as long.
    max[0] = Max(Load(logits), max[0]);
    max[1] = Max(Load(logits + n - kLanes), max[1]);
    const auto address = reinterpret_cast<uintptr_t>(logits);
    auto i = static_cast<int32_t>((0 - address) / sizeof(float) % kLanes);
    // What follows this block begins to arrive before its last sums have been compared.
    for (int line = 0; line < 512; line += 16) Prefetch(address + (n + line) * sizeof(float));
    for (; i + kCount * kLanes <= n; i += kCount * kLanes) {
      for (int j = 0; j < kCount; ++j) max[j] = Max(Load(logits + i + kLanes * j), max[j]);
    }
    for (; i + kLanes <= n; i += kLanes) max[0] = Max(Load(logits + i), max[0]);
  }
  for (int half = kCount / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) max[j] = Max(max[j], max[j + half]);
  }
  float lanes[kLanes];
  Store(lanes, max[0]);
  float best = lanes[0];
  for (float lane : lanes) best = lane > best ? lane : best;
  return best;
}

int32_t FindLoop(const float* logits, int32_t n, float value) {
  constexpr int kCount = 4;
  const Vec wanted = Set(value);
  int32_t i = 0;
  for (; i + kCount * kLanes <= n; i += kCount * kLanes) {
    uint32_t equal[kCount], any = 0;
    for (int j = 0; j < kCount; ++j) {
      equal[j] = EqualLanes(Load(logits + i + kLanes * j), wanted);
      any |= equal[j];
    }
    if (any == 0) continue;
    for (int j = 0;; ++j) {
      if (equal[j] != 0) return i + kLanes * j + __builtin_ctz(equal[j]);
    }
  }
  for (; i < n; i += kLanes) {
    const int32_t count = n - i < kLanes ? n - i : kLanes;
    uint32_t equal = EqualLanes(LoadSome(logits + i, count, 0.0f), wanted);
    if (count < kLanes) equal &= (1u << count) - 1;
    if (equal != 0) return i + __builtin_ctz(equal);
  }
  return -1;
}

void MaskLoop(const uint32_t* bits, int32_t first, int32_t n, float* logits) {
  const auto word = [&](int32_t token) -> uint64_t {  // the bits from a token on, at least one
    return bits[token / 32] >> (token % 32);
  };
  ForRuns<kLanes>(n, [&](int32_t i, int32_t count) {
    const int32_t token = first + i, left = 32 - token % 32;
    uint64_t chosen = word(token);
    if (left < count) chosen |= word(token + left) << left;
    StoreSome(logits + i, Select(chosen, LoadSome(logits + i, count, 0.0f), Set(-kInfinity)),
              count);
  });
}

template <bool kStore>
uint64_t ExpSumOf(const float* logits, int32_t n, const ExpGrid& grid, float* exps) {
  const Ints up = SetInts(static_cast<uint32_t>(-FixedSum::kShift) << 23);
  uint64_t total = 0;
  ForRuns<FixedSum::kMost>(n, [&](int32_t begin, int32_t size) {
    FixedSum sum;
    ForExps<FixedSum::kShift>(logits + begin, size, grid, [&](Vec x, int32_t i, int32_t k) {
      if (kStore) StoreSome(exps + begin + i, AsVec(Add32(AsInts(x), up)), k);
      sum.Take(x);
    });
    total += sum.Total();
  });
  return total;
}

uint64_t ExpSumLoop(const float* logits, int32_t n, const ExpGrid& grid, float* exps) {
  return exps == nullptr ? ExpSumOf<false>(logits, n, grid, exps)
                         : ExpSumOf<true>(logits, n, grid, exps);
}

/*!
 * \brief Exact sums of integers to which 2^52 was added: their bits add up as integers.
 */
class GridSum {
 public:
  // Adds the integers of one vector, and stores them without the 2^52 unless out is null.
  void Take(const Doubles (&w)[2], int32_t count, double* out) {
    sum_[0] = Add64(sum_[0], AsInts(w[0]));
    sum_[1] = Add64(sum_[1], AsInts(w[1]));
    ++count_;
    if (out == nullptr) return;
    const Doubles round = SetDoubles(kRoundDouble);
    StoreSome(out, Sub(w[0], round), Sub(w[1], round), count);
  }
  double Total() const {
    uint64_t lanes[kDoubles], total = 0;
    StoreInts(lanes, Add64(sum_[0], sum_[1]));
    for (uint64_t lane : lanes) total += lane;
    constexpr uint64_t kRoundBits = uint64_t{1075} << 52;
    return static_cast<double>(static_cast<int64_t>(total - count_ * kLanes * kRoundBits));
  }

 private:
  Ints sum_[2] = {SetInts(0), SetInts(0)};
  uint64_t count_ = 0;
};

// Grid weights of a vector of exponentials, plus 2^52.
inline void WeightsOf(Vec exps, Doubles factor, Doubles (&w)[2]) {
  const Vec fixed = RoundEven(exps);  // ToFixed: floats from 2^23 on are integers already
  w[0] = Fma(LowDoubles(fixed), factor, SetDoubles(kRoundDouble));
  w[1] = Fma(HighDoubles(fixed), factor, SetDoubles(kRoundDouble));
}

// Grid weights of a vector of probabilities.
inline void WeightsOf(Vec probs, Doubles (&w)[2]) {
  // Exact: a power of two, and no float is too fine for it.
  const Vec grid = RoundEven(Mul(probs, Set(static_cast<float>(kProbScale))));
  w[0] = LowDoubles(grid);
  w[1] = HighDoubles(grid);
}

// round(max(0, a * r - b * d)) + 2^52
inline Doubles Rest(Doubles r, Doubles d, Doubles a, Doubles b) {
  return Add(Max(Fms(a, r, Mul(b, d)), SetDoubles(0)), SetDoubles(kRoundDouble));
}

inline double* Behind(double* out, int32_t i) { return out == nullptr ? nullptr : out + i; }

double WeightsFromExpsLoop(const float* exps, int32_t n, double factor, double* out) {
  const Doubles factors = SetDoubles(factor);
  GridSum sum;
  ForRuns<kLanes>(n, [&](int32_t i, int32_t count) {
    Doubles w[2];
    WeightsOf(LoadSome(exps + i, count, 0.0f), factors, w);
    sum.Take(w, count, Behind(out, i));
  });
  return sum.Total();
}

double WeightsFromLogitsLoop(const float* logits, int32_t n, const ExpTerms& terms, double* out) {
  const Doubles factor = SetDoubles(terms.factor);
  GridSum sum;
  ForExps<0>(logits, n, terms.grid, [&](Vec x, int32_t i, int32_t count) {
    Doubles w[2];
    WeightsOf(x, factor, w);
    sum.Take(w, count, Behind(out, i));
  });
  return sum.Total();
}

template <bool kStore>
uint64_t FixedRests(const float* logits, const float* q, int32_t n, const RestTerms& terms,
                    double* out) {
  static_assert(FixedSum::kShift == -kRestShift, "one rounding for scalars and vectors");
  const Vec p_factor = Set(terms.factors.p_factor), q_factor = Set(terms.factors.q_factor);
  uint64_t total = 0;
  ForRuns<FixedSum::kMost>(n, [&](int32_t begin, int32_t size) {
    FixedSum sum;
    ForExps<FixedSum::kShift>(logits + begin, size, terms.grid, [&](Vec x, int32_t i, int32_t k) {
      const int32_t at = begin + i;
      const Vec rest = Fma(x, p_factor, Mul(LoadSome(q + at, k, 0.0f), q_factor));
      const Vec left = Max(rest, Set(0.0f));  // NaN is 0 too
      sum.Take(left);
      if (!kStore) return;
      const Vec fixed = RoundEven(Mul(left, Set(1 << kRestShift)));
      const Doubles grid = SetDoubles(kGridOfFixed);
      StoreSome(out + at, Mul(LowDoubles(fixed), grid), Mul(HighDoubles(fixed), grid), k);
    });
    total += sum.Total();
  });
  return total;
}

double RestFromLogitsLoop(const float* logits, const float* q, int32_t n, const RestTerms& terms,
                          double* out) {
  const uint64_t sum = out == nullptr ? FixedRests<false>(logits, q, n, terms, out)
                                      : FixedRests<true>(logits, q, n, terms, out);
  return static_cast<double>(sum) * kGridOfFixed;
}

double WeightsFromF32Loop(const float* probs, int32_t n, double* out) {
  Doubles sum[2] = {SetDoubles(0), SetDoubles(0)};
  Ints largest = SetInts(0);
  ForRuns<kLanes>(n, [&](int32_t i, int32_t count) {
    FetchNextBlock(probs + i);
    const Vec p = LoadSome(probs + i, count, 0.0f);
    largest = MaxUnsigned32(largest, AsInts(p));
    Doubles w[2];
    WeightsOf(p, w);
    if (out != nullptr) StoreSome(out + i, w[0], w[1], count);
    sum[0] = Add(sum[0], w[0]);
    sum[1] = Add(sum[1], w[1]);
  });
  // The bits of floats in [0, 1.001], as integers, have an upper bound; only -0 exceeds it.
  uint32_t lanes[kLanes], most = 0;
  StoreInts(lanes, largest);
  for (uint32_t lane : lanes) most = lane > most ? lane : most;
  if (most > kMostProbBits) {
    for (int32_t i = 0; i < n; ++i) {
      if (!(probs[i] >= 0 && static_cast<double>(probs[i]) <= 1.001)) return __builtin_nan("");
    }
  }
  return SumOf(Add(sum[0], sum[1]));
}

double WeightsFromF64Loop(const double* probs, int32_t n, double* out) {
  const Doubles scale = SetDoubles(kProbScale), most = SetDoubles(1.001);
  Doubles sum = SetDoubles(0);
  Ints valid = SetInts(~0u);
  ForRuns<kDoubles>(n, [&](int32_t i, int32_t count) {
    const Doubles p = LoadSome(probs + i, count);
    valid = And(valid, Within(p, SetDoubles(0), most));
    const Doubles w = RoundDoubles(Mul(p, scale));
    if (out != nullptr) StoreSome(out + i, w, count);
    sum = Add(sum, w);
  });
  uint64_t lanes[kDoubles], all = ~uint64_t{0};
  StoreInts(lanes, valid);
  for (uint64_t lane : lanes) all &= lane;
  return all == ~uint64_t{0} ? SumOf(sum) : __builtin_nan("");
}

double SubtractLoop(const double* r, const double* d, int32_t n, double a, double b, double* out) {
  const Doubles as = SetDoubles(a), bs = SetDoubles(b);
  GridSum sum;
  ForRuns<kLanes>(n, [&](int32_t i, int32_t count) {
    Doubles w[2];
    for (int32_t j = 0; j < 2; ++j) {
      const int32_t at = j * kDoubles, left = count - at < kDoubles ? count - at : kDoubles;
      w[j] = Rest(LoadSome(r + i + at, left), LoadSome(d + i + at, left), as, bs);
    }
    sum.Take(w, count, Behind(out, i));
  });
  return sum.Total();
}

template <typename T>
void ToFloatLoop(const uint16_t* values, int32_t n, float* out) {
  const T* from = reinterpret_cast<const T*>(values);
  ForRuns<kLanes>(n, [&](int32_t i, int32_t count) {
    StoreSome(out + i, LoadSome(from + i, count, 0.0f), count);
  });
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SAMPLING_VOCAB_LOOPS_INL_H_
