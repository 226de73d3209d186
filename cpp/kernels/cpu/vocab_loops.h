// The loops of core/vocab_ops.h over vectors: operation for operation what the scalar ones do.
// Include inside a namespace of the instruction set, after its vec_*.h and vocab_vec_*.h. Nothing
// compiled for an instruction set may serve other files, so all of it has internal linkage.

constexpr float kInfinity = __builtin_inff();
constexpr int32_t kDoubles = kLanes / 2;
constexpr uint32_t kMostProbBits = 0x3f8020c4u;  // the largest float up to 1.001

inline Doubles RoundDoubles(Doubles x) {
  const Doubles round = SetDoubles(kRoundDouble);
  return Sub(Add(x, round), round);
}

// Calls f(i, count) for runs of a whole vector, then for the rest. Written twice, so that the first
// may be compiled for a constant count.
template <int32_t kCount, typename F>
inline void ForRuns(int32_t n, F f) {
  int32_t i = 0;
  for (; i + kCount <= n; i += kCount) f(i, kCount);
  if (i < n) f(i, n - i);
}

// A vector's worth from p, the lanes from `count` on filled.
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

float MaxLoop(const float* logits, int32_t n) {
  const Vec lowest = Set(-kInfinity);
  Vec max[4] = {lowest, lowest, lowest, lowest};
  int32_t i = 0;
  // The second operand is what a NaN in either gives.
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) max[j] = Max(Load(logits + i + kLanes * j), max[j]);
  }
  ForRuns<kLanes>(n - i, [&](int32_t at, int32_t count) {
    max[0] = Max(LoadSome(logits + i + at, count, -kInfinity), max[0]);
  });
  float lanes[kLanes];
  Store(lanes, Max(Max(max[0], max[1]), Max(max[2], max[3])));
  float best = lanes[0];
  for (float lane : lanes) best = lane > best ? lane : best;
  return best;
}

int32_t FindLoop(const float* logits, int32_t n, float value) {
  const Vec wanted = Set(value);
  for (int32_t i = 0; i < n; i += kLanes) {
    const int32_t count = n - i < kLanes ? n - i : kLanes;
    uint32_t equal = EqualLanes(LoadSome(logits + i, count, 0.0f), wanted);
    if (count < kLanes) equal &= (1u << count) - 1;
    if (equal != 0) return i + __builtin_ctz(equal);
  }
  return -1;
}

void MaskLoop(const uint32_t* bits, int32_t first, int32_t n, float* logits) {
  const auto word = [&](int32_t token) -> uint64_t {  // the bits from a token's on; one at least
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

// The exponential of Exp2Scaled times 2^kShift; kShift must be even, or ties would round the other
// way.
template <int kShift>
inline Vec ExpVec(Vec logits, Vec scale, Vec minus_shift) {
  constexpr int kExponent = (kExpBits + kShift) & ~1;
  const Vec round = Set(kRoundFloat + kExponent);
  Vec y = Fma(logits, scale, minus_shift);
  y = Max(y, Set(kMinExponent));  // NaN too
  const Vec shifted = Add(y, round);
  const Vec f = Sub(y, Sub(shifted, round));
  Vec p = Set(kExp2Poly[0]);
  for (int i = 1; i < 7; ++i) p = Fma(p, f, Set(kExp2Poly[i]));
  Ints exponent = ShiftLeft32<23>(AsInts(shifted));
  if (kExponent != kExpBits + kShift) exponent = Add32(exponent, SetInts(1u << 23));
  return AsVec(Add32(AsInts(p), exponent));
}

/*!
 * \brief Exact sums of ToFixed, from exponentials times 2^-23.
 *
 * Adding 2^23 rounds such a number to an integer, which counts 2^23; what is left, in [-1/2, 1/2],
 * is rounded to a multiple of 2^-23 by adding 1.5. Both are left in the low bits of floats, and
 * add up as integers, the constants to be taken off in the end.
 */
class FixedSum {
 public:
  // Lanes of 32 bits hold this many: a whole part may reach 2^23, a fraction 2^22 up or down.
  static constexpr int32_t kMost = 511 * kLanes;
  static constexpr int kShift = -23;

  void Take(Vec scaled) {
    const Vec whole_unit = Set(0x1p23f);
    const Vec whole = Add(scaled, whole_unit);
    const Vec fraction = Add(Sub(scaled, Sub(whole, whole_unit)), Set(1.5f));
    whole_ = Add32(whole_, AsInts(whole));
    fraction_ = Add32(fraction_, AsInts(fraction));
    ++count_;
  }
  uint64_t Total() const {
    constexpr uint32_t kWhole = 0x4b000000u, kFraction = 0x3fc00000u;  // the bits of 2^23 and 1.5
    uint32_t whole[kLanes], fraction[kLanes];
    StoreInts(whole, whole_);
    StoreInts(fraction, fraction_);
    uint64_t total = 0;
    for (int i = 0; i < kLanes; ++i) {
      total += static_cast<uint64_t>(whole[i] - count_ * kWhole) << 23;
      total += static_cast<uint64_t>(
          static_cast<int64_t>(static_cast<int32_t>(fraction[i] - count_ * kFraction)));
    }
    return total;
  }

 private:
  Ints whole_ = SetInts(0), fraction_ = SetInts(0);
  uint32_t count_ = 0;
};

template <bool kStore>
uint64_t ExpSumOf(const float* logits, int32_t n, float scale, float shift, float* exps) {
  const Vec scales = Set(scale), minus_shift = Set(-shift);
  uint64_t total = 0;
  ForRuns<FixedSum::kMost>(n, [&](int32_t begin, int32_t size) {
    FixedSum sum;
    ForRuns<kLanes>(size, [&](int32_t i, int32_t count) {
      const Vec piece = LoadSome(logits + begin + i, count, -kInfinity);  // the fill weighs 0
      const Vec scaled = ExpVec<FixedSum::kShift>(piece, scales, minus_shift);
      if (kStore) {
        const Ints up = SetInts(static_cast<uint32_t>(-FixedSum::kShift) << 23);
        StoreSome(exps + begin + i, AsVec(Add32(AsInts(scaled), up)), count);
      }
      sum.Take(scaled);
    });
    total += sum.Total();
  });
  return total;
}

uint64_t ExpSumLoop(const float* logits, int32_t n, float scale, float shift, float* exps) {
  return exps == nullptr ? ExpSumOf<false>(logits, n, scale, shift, exps)
                         : ExpSumOf<true>(logits, n, scale, shift, exps);
}

// Grid weights of a vector of exponentials, stored unless out is null, and added to sum.
inline void TakeWeights(Vec exps, Doubles factor, int32_t count, double* out, Doubles* sum) {
  const Vec fixed = RoundEven(exps);  // ToFixed: floats from 2^23 on are integers already
  const Doubles round = SetDoubles(kRoundDouble);
  const Doubles low = Sub(Fma(LowDoubles(fixed), factor, round), round);
  const Doubles high = Sub(Fma(HighDoubles(fixed), factor, round), round);
  if (out != nullptr) StoreSome(out, low, high, count);
  sum[0] = Add(sum[0], low);
  sum[1] = Add(sum[1], high);
}

double WeightsFromExpsLoop(const float* exps, int32_t n, double factor, double* out) {
  const Doubles factors = SetDoubles(factor);
  Doubles sum[2] = {SetDoubles(0), SetDoubles(0)};
  ForRuns<kLanes>(n, [&](int32_t i, int32_t count) {
    TakeWeights(LoadSome(exps + i, count, 0.0f), factors, count, out == nullptr ? out : out + i,
                sum);
  });
  return SumOf(Add(sum[0], sum[1]));
}

double WeightsFromLogitsLoop(const float* logits, int32_t n, float scale, float shift,
                             double factor, double* out) {
  const Vec scales = Set(scale), minus_shift = Set(-shift);
  const Doubles factors = SetDoubles(factor);
  Doubles sum[2] = {SetDoubles(0), SetDoubles(0)};
  ForRuns<kLanes>(n, [&](int32_t i, int32_t count) {
    const Vec piece = LoadSome(logits + i, count, -kInfinity);
    TakeWeights(ExpVec<0>(piece, scales, minus_shift), factors, count,
                out == nullptr ? out : out + i, sum);
  });
  return SumOf(Add(sum[0], sum[1]));
}

double WeightsFromF32Loop(const float* probs, int32_t n, double* out) {
  const Vec scale = Set(static_cast<float>(kProbScale));
  Doubles sum[2] = {SetDoubles(0), SetDoubles(0)};
  Ints largest = SetInts(0);
  ForRuns<kLanes>(n, [&](int32_t i, int32_t count) {
    const Vec p = LoadSome(probs + i, count, 0.0f);
    largest = MaxUnsigned32(largest, AsInts(p));
    const Vec grid = RoundEven(Mul(p, scale));  // exact: a power of two, and no float is too fine
    const Doubles low = LowDoubles(grid), high = HighDoubles(grid);
    if (out != nullptr) StoreSome(out + i, low, high, count);
    sum[0] = Add(sum[0], low);
    sum[1] = Add(sum[1], high);
  });
  // As integers, the bits of floats in [0, 1.001] are those up to a bound; only -0 is missed.
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
  Doubles sum = SetDoubles(0);
  ForRuns<kDoubles>(n, [&](int32_t i, int32_t count) {
    const Doubles bd = Mul(bs, LoadSome(d + i, count));
    const Doubles rest = Fms(as, LoadSome(r + i, count), bd);
    const Doubles w = RoundDoubles(Max(rest, SetDoubles(0)));
    if (out != nullptr) StoreSome(out + i, w, count);
    sum = Add(sum, w);
  });
  return SumOf(sum);
}

template <typename T>
void ToFloatLoop(const uint16_t* values, int32_t n, float* out) {
  const T* from = reinterpret_cast<const T*>(values);
  ForRuns<kLanes>(n, [&](int32_t i, int32_t count) {
    StoreSome(out + i, LoadSome(from + i, count, 0.0f), count);
  });
}

VocabOps LoopTable() {
  return {MaxLoop,
          FindLoop,
          MaskLoop,
          ExpSumLoop,
          WeightsFromExpsLoop,
          WeightsFromLogitsLoop,
          WeightsFromF32Loop,
          WeightsFromF64Loop,
          SubtractLoop,
          ToFloatLoop<Float16>,
          ToFloatLoop<BFloat16>,
          GumbelAvx2};
}
