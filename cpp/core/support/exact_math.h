/*!
 * \file core/support/exact_math.h
 * \brief exp and log that give the same bits on every machine, and the fixed-point grids of sums.
 *
 * A library's expf differs between versions and devices by an ulp, and an ulp is enough to pick
 * another token. These are short polynomials whose every operation is an IEEE operation with an
 * explicit fused multiply-add, so that scalar code, vector code and CUDA agree bit for bit.
 * Everything here has internal linkage: files for different instruction sets may include it side by
 * side.
 */
#ifndef KVCTL_CORE_SUPPORT_EXACT_MATH_H_
#define KVCTL_CORE_SUPPORT_EXACT_MATH_H_

#include <cstdint>
#include <cstring>

#include "core/support/host_device.h"

namespace kvctl {

// The builtins and not std::fma, an inline function that files for different instruction sets would
// share.
#ifdef __CUDA_ARCH__
static __device__ inline float FMA(float a, float b, float c) { return __fmaf_rn(a, b, c); }
static __device__ inline double FMA(double a, double b, double c) { return __fma_rn(a, b, c); }
#else
static inline float FMA(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double FMA(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif

/*! \brief log2(e): logits become exponents of two. */
constexpr double kLog2E = 1.4426950408889634;

/*!
 * \brief exp(l - max) as an integer: at most 2^44, so that a sum over 2^19 tokens fits 64 bits.
 * A token whose probability is less than 2^-45 of the largest has weight 0.
 */
constexpr int kExpBits = 44;
/*! \brief Exponents below this have weight 0 at kExpBits; clamping keeps them out of denormals. */
constexpr float kMinExponent = -64.0f;

/*! \brief Probabilities as integers, at 2^50: their sums stay below 2^53, so doubles hold them
 * exactly. */
constexpr double kProbScale = 1125899906842624.0;

/*! \brief 1.5 * 2^23: adding it to a float leaves the nearest integer in the low mantissa bits. */
constexpr float kRoundFloat = 12582912.0f;
/*! \brief 2^52: adding it to a double below 2^52 leaves the nearest integer in the mantissa. */
constexpr double kRoundDouble = 4503599627370496.0;

/*! \brief 2^f on [-1/2, 1/2], minimax in relative error (1.9e-9); highest power first. */
KVCTL_HD_TABLE float kExp2Poly[7] = {0x1.41d334p-13f,
                                     0x1.5f456ap-10f,
                                     0x1.3b2dbcp-7f,
                                     0x1.c6aed4p-5f,
                                     0x1.ebfbdap-3f,
                                     0x1.62e430p-1f,
                                     1.0f};

/*! \brief Parameters that turn logits into powers of two: 2^(logit * scale - exponent + kExpBits).
 * The exponent is an integer of at most kMaxExponent, so that it is exact in `offset`. */
struct ExpGrid {
  float scale;
  float offset;  //!< kRoundFloat - exponent
  float least;   //!< smaller logits are raised to it; its weight is 0
};

/*! \brief Exponents of two beyond this are meaningless: neighbouring floats are almost a power of
 * two apart. */
constexpr float kMaxExponent = 4194240.0f;

static KVCTL_HD inline ExpGrid MakeExpGrid(float scale, float exponent) {
  return {scale, kRoundFloat - exponent, (exponent + kMinExponent) / scale};
}

/*! \brief The power of two of a logit, as a float; below 1/2 where it is NaN or its exponent is
 * less than kMinExponent. The exponent is split exactly, so large logits keep their precision. */
static KVCTL_HD inline float Exp2Scaled(float logit, const ExpGrid& grid) {
  const float x = logit > grid.least ? logit : grid.least;  // NaN too
  const float shifted = FMA(x, grid.scale, grid.offset);
  const float f = FMA(x, grid.scale, grid.offset - shifted);
  float p = kExp2Poly[0];
  for (int i = 1; i < 7; ++i) p = FMA(p, f, kExp2Poly[i]);
  int32_t bits, exponent;
  std::memcpy(&bits, &p, sizeof(bits));
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  bits += static_cast<int32_t>((static_cast<uint32_t>(exponent) + kExpBits) << 23);
  std::memcpy(&p, &bits, sizeof(p));
  return p;
}

/*! \brief The integer nearest to a float in [0, 2^51], ties to even. */
static KVCTL_HD inline uint64_t ToFixed(float value) {
  const double rounded = static_cast<double>(value) + kRoundDouble;
  uint64_t bits;
  std::memcpy(&bits, &rounded, sizeof(bits));
  return bits & ((uint64_t{1} << 52) - 1);
}

/*! \brief A probability on the grid of kProbScale, as an integer-valued double. */
static KVCTL_HD inline double ToGrid(double probability) {
  return (probability * kProbScale + kRoundDouble) - kRoundDouble;
}

/*! \brief Grid weights from those at 2^kExpBits. */
constexpr double kGridOfFixed = kProbScale / (uint64_t{1} << kExpBits);

/*! \brief Factors for relu(a * p - b * q) where p is an exponential and q a float: its weight, at
 * 2^kExpBits, is that of relu(exp * 2^-kRestShift * p_factor + q * q_factor) * 2^kRestShift. */
struct RestFactors {
  float p_factor;
  float q_factor;  //!< negative
};
/*! \brief Floats are scaled down by this many bits while they are subtracted: the vector sums need
 * it. */
constexpr int kRestShift = 22;

/*!
 * \brief The factors for grid weights.
 * \param a factor of the grid weight of the exponential
 * \param b factor of the grid weight of q
 */
static KVCTL_HD inline RestFactors MakeRestFactors(double a, double b) {
  constexpr double kOfQ = kProbScale / kGridOfFixed / (1 << kRestShift);
  return {static_cast<float>(a / kGridOfFixed), -static_cast<float>(b * kOfQ)};
}

/*! \brief Computed in float: neither distribution is known more precisely. 0 for NaN. */
static KVCTL_HD inline uint64_t FixedRest(float exp, float q, const RestFactors& factors) {
  const float p = exp * (1.0f / (1 << kRestShift));
  const float rest = FMA(p, factors.p_factor, q * factors.q_factor);
  return rest > 0 ? ToFixed(rest * (1 << kRestShift)) : 0;
}

/*! \brief 2 / (2k + 1) for k = 10..0: log(m) = s * P(s^2) with s = (m - 1) / (m + 1). */
KVCTL_HD_TABLE double kLogPoly[11] = {2.0 / 21, 2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13, 2.0 / 11,
                                      2.0 / 9,  2.0 / 7,  2.0 / 5,  2.0 / 3,  2.0};
/*! \brief ln 2 in two parts: the first has 20 trailing zero bits, so exponent * kLn2Hi is exact. */
constexpr double kLn2Hi = 0x1.62e42fee00000p-1;
constexpr double kLn2Lo = 0x1.a39ef35793c76p-33;
/*! \brief Mantissas of at least sqrt 2 are halved, and the exponent raised by one. */
constexpr double kSqrt2 = 0x1.6a09e667f3bcdp+0;

/*! \brief Natural logarithm of a positive normal double, within a few ulp. */
static KVCTL_HD inline double ExactLog(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  int64_t exponent = static_cast<int64_t>(bits >> 52) - 1023;
  bits = (bits & 0x000fffffffffffffull) | 0x3ff0000000000000ull;
  double m;
  std::memcpy(&m, &bits, sizeof(m));
  if (m >= kSqrt2) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double p = kLogPoly[0];
  for (int i = 1; i < 11; ++i) p = FMA(p, z, kLogPoly[i]);
  const double e = static_cast<double>(exponent);
  return FMA(e, kLn2Hi, FMA(s, p, e * kLn2Lo));
}

/*! \brief 53 random bits as a number strictly between 0 and 1. */
static KVCTL_HD inline double OpenUniform(uint64_t bits) {
  return static_cast<double>(bits >> 12) * 0x1p-52 + 0x1p-53;
}

/*! \brief 53 random bits as a number in [0, 1). */
static KVCTL_HD inline double Uniform(uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace kvctl

#endif  // KVCTL_CORE_SUPPORT_EXACT_MATH_H_
