/*!
 * \file kernels/convert.h
 * \brief Portable scalar conversions between float16, bfloat16 and float32.
 */
#ifndef KVCTL_KERNELS_CONVERT_H_
#define KVCTL_KERNELS_CONVERT_H_

#include <cstdint>
#include <cstring>

namespace kvctl {
// Types: distinct from integers, so that overloads tell them apart.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Anonymous on purpose: files compiled for different instruction sets must not share a copy.
namespace {

inline float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t ToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float ToFloat(float value) { return value; }

inline float ToFloat(BFloat16 value) { return FromBits(uint32_t{value.bits} << 16); }

inline float ToFloat(Float16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00) return FromBits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Exponent and mantissa in place are the value times 2^-112, subnormals included.
  return FromBits(sign | ToBits(FromBits(magnitude << 13) * 0x1p112f));
}

inline void FromFloat(float value, float* out) { *out = value; }

inline void FromFloat(float value, BFloat16* out) {
  const uint32_t bits = ToBits(value);
  if (value != value) {
    out->bits = static_cast<uint16_t>(bits >> 16 | 0x40);  // a quiet NaN stays one
  } else {
    out->bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}

inline void FromFloat(float value, Float16* out) {
  const uint32_t bits = ToBits(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // 65520 rounds to infinity
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves 2^-24 units in the low bits
    half = ToBits(FromBits(magnitude) + 0.5f) - 0x3f000000;
  } else {
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CONVERT_H_
