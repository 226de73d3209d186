/*!
 * \file kernels/cpu/sampling/vocab_vectors-inl.h
 * \brief The building blocks of the loops over the vocabulary: partial vectors, interleaved
 * exponentials, exact sums.
 */
#ifndef KVCTL_KERNELS_CPU_SAMPLING_VOCAB_VECTORS_INL_H_
#define KVCTL_KERNELS_CPU_SAMPLING_VOCAB_VECTORS_INL_H_

#include <cstdint>

#include "core/sampling/vocab_ops.h"
#include "core/support/exact_math.h"
#include "kernels/convert.h"

#if defined(__AVX512F__)
#include "kernels/cpu/sampling/vocab_vec_avx512-inl.h"
#else
#include "kernels/cpu/sampling/vocab_vec_avx2-inl.h"
#endif

namespace kvctl {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr int32_t kDoubles = kLanes / 2;

inline Doubles RoundDoubles(Doubles x) {
  const Doubles round = SetDoubles(kRoundDouble);
  return Sub(Add(x, round), round);
}

// Calls f(i, count) for runs of kCount, then for the rest. There are two calls so that the first
// can be compiled for a constant count.
template <int32_t kCount, typename F>
inline void ForRuns(int32_t n, F f) {
  int32_t i = 0;
  for (; i + kCount <= n; i += kCount) f(i, kCount);
  if (i < n) f(i, n - i);
}

// Loads `count` elements from p; the other lanes are `fill`.
template <typename T>
inline Vec LoadSome(const T* p, int32_t count, float fill) {
  if (count == kLanes) return Load(p);
  float lanes[kLanes];
  for (int32_t i = 0; i < kLanes; ++i) lanes[i] = i < count ? ToFloat(p[i]) : fill;
  return Load(lanes);
}
inline void StoreSome(float* p, Vec x, int32_t count) {
  if (count == kLanes) return Store(p, x);
  float lanes[kLanes];
  Store(lanes, x);
  for (int32_t i = 0; i < count; ++i) p[i] = lanes[i];
}
inline Doubles LoadSome(const double* p, int32_t count) {
  if (count == kDoubles) return LoadDoubles(p);
  double lanes[kDoubles] = {};
  for (int32_t i = 0; i < count; ++i) lanes[i] = p[i];
  return LoadDoubles(lanes);
}
inline void StoreSome(double* p, Doubles x, int32_t count) {
  if (count == kDoubles) return StoreDoubles(p, x);
  double lanes[kDoubles];
  StoreDoubles(lanes, x);
  for (int32_t i = 0; i < count; ++i) p[i] = lanes[i];
}
// The first `count` of two runs of doubles.
inline void StoreSome(double* p, Doubles low, Doubles high, int32_t count) {
  StoreSome(p, low, count < kDoubles ? count : kDoubles);
  if (count > kDoubles) StoreSome(p + kDoubles, high, count - kDoubles);
}

// Integers in doubles: any order of addition is exact.
inline double SumOf(Doubles x) {
  double lanes[kDoubles], sum = 0;
  StoreDoubles(lanes, x);
  for (double lane : lanes) sum += lane;
  return sum;
}

// Turns logits into the exponentials of Exp2Scaled times 2^kShift. Several vectors are interleaved
// to hide latency. The shift is added to the rounding constant; an odd shift would round ties the
// other way.
template <int kShift, int kCount>
inline void TakeExps(const ExpGrid& grid, Vec (&x)[kCount]) {
  constexpr int kExponent = kExpBits + kShift;
  static_assert(kExponent % 2 == 0, "ties round to even");
  const Vec scale = Set(grid.scale), offset = Set(grid.offset + kExponent), least = Set(grid.least);
  Vec p[kCount];
  for (Vec& v : x) v = Max(v, least);  // NaN too
  for (int j = 0; j < kCount; ++j) p[j] = Fma(x[j], scale, offset);
  Ints exponent[kCount];
  for (int j = 0; j < kCount; ++j) {
    exponent[j] = ShiftLeft32<23>(AsInts(p[j]));
    x[j] = Fma(x[j], scale, Sub(offset, p[j]));
  }
  for (Vec& v : p) v = Set(kExp2Poly[0]);
  for (int i = 1; i < 7; ++i) {
    for (int j = 0; j < kCount; ++j) p[j] = Fma(p[j], x[j], Set(kExp2Poly[i]));
  }
  for (int j = 0; j < kCount; ++j) x[j] = AsVec(Add32(AsInts(p[j]), exponent[j]));
}

// Prefetches the data one block ahead. A prefetch past the end of a row reads nothing.
inline void FetchNextBlock(const float* p) {
  Prefetch(reinterpret_cast<uintptr_t>(p) + kVocabBlock * sizeof(float));
}

// Calls take(exponentials times 2^kShift, i, count) for logits [i, i + count).
template <int kShift, typename F>
inline void ForExps(const float* logits, int32_t n, const ExpGrid& grid, F take) {
  constexpr int kCount = 4;
  int32_t i = 0;
  for (; i + kCount * kLanes <= n; i += kCount * kLanes) {
    for (int line = 0; line < kCount * kLanes; line += 16) FetchNextBlock(logits + i + line);
    Vec x[kCount];
    for (int j = 0; j < kCount; ++j) x[j] = Load(logits + i + j * kLanes);
    TakeExps<kShift>(grid, x);
    for (int j = 0; j < kCount; ++j) take(x[j], i + j * kLanes, kLanes);
  }
  ForRuns<kLanes>(n - i, [&](int32_t at, int32_t count) {
    Vec x[1] = {LoadSome(logits + i + at, count, -kInfinity)};  // the fill has weight 0
    TakeExps<kShift>(grid, x);
    take(x[0], i + at, count);
  });
}

/*!
 * \brief Exact sums of ToFixed, from exponentials times 2^-22.
 *
 * Adding 2^23 rounds such a number to an integer, in units of 2^22. Adding 3 rounds the remainder,
 * in [-1/2, 1/2], to a multiple of 2^-22. Both end up in the low bits of floats and are summed as
 * integers; the constants are subtracted at the end.
 */
class FixedSum {
 public:
  // 32-bit lanes hold this many terms: an integer part is at most 2^23, a fraction at most 2^21 in
  // magnitude.
  static constexpr int32_t kMost = 508 * kLanes;
  static constexpr int kShift = -22;

  void Take(Vec scaled) {
    const Vec whole = Add(scaled, Set(0x1p23f));
    const Vec fraction =
        Add(scaled, Sub(Set(0x1p23f + 3), whole));  // 3 - the integer part is exact
    whole_ = Add32(whole_, AsInts(whole));
    fraction_ = Add32(fraction_, AsInts(fraction));
    ++count_;
  }
  uint64_t Total() const {
    constexpr uint32_t kWhole = 0x4b000000u, kFraction = 0x40400000u;  // the bits of 2^23 and 3
    uint32_t whole[kLanes], fraction[kLanes];
    StoreInts(whole, whole_);
    StoreInts(fraction, fraction_);
    uint64_t total = 0;
    for (int i = 0; i < kLanes; ++i) {
      total += static_cast<uint64_t>(whole[i] - count_ * kWhole) << 22;
      total += static_cast<uint64_t>(
          static_cast<int64_t>(static_cast<int32_t>(fraction[i] - count_ * kFraction)));
    }
    return total;
  }

 private:
  Ints whole_ = SetInts(0), fraction_ = SetInts(0);
  uint32_t count_ = 0;
};

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SAMPLING_VOCAB_VECTORS_INL_H_
