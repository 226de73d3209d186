/*!
 * \file kernels/cuda/device/float8.cuh
 * \brief Elements of 8 bits, e4m3 without infinities: a sign, four bits of exponent, three of
 * mantissa (OCP 8-bit floating point specification, 2023). The largest is 448; 0x7f is NaN.
 *
 * Integer operations alone, so that all devices, those without such instructions too, round alike.
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_FLOAT8_CUH_
#define KVCTL_KERNELS_CUDA_DEVICE_FLOAT8_CUH_

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace kvctl::cuda {

struct Float8 {
  uint8_t bits;
};

__device__ inline uint32_t FloatBits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}
__device__ inline float BitsToFloat(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

__device__ inline float ToFloat(Float8 value) {
  const uint32_t magnitude = value.bits & 0x7fu;
  const uint32_t sign = (value.bits & 0x80u) << 24;
  if (magnitude == 0x7f) return BitsToFloat(sign | 0x7fc00000u);
  // Exponent and mantissa as those of a float that is 2^120 times too small.
  return BitsToFloat(FloatBits(BitsToFloat(magnitude << 20) * 0x1p120f) | sign);
}

/*!
 * \brief Rounds to the nearest element, ties to even.
 *
 * What is larger than all finite elements becomes the largest, 448; an infinity becomes NaN.
 * \return Whether the value was finite and became 448 instead of a larger element.
 */
__device__ inline bool RoundToFloat8(float value, Float8* out) {
  const uint32_t sign = FloatBits(value) >> 24 & 0x80u;
  const uint32_t magnitude = FloatBits(value) & 0x7fffffffu;
  constexpr uint32_t kLargest = 0x7e;
  uint32_t code = 0x7f;
  bool saturates = false;
  if (magnitude < 0x3c800000u) {  // 2^-6: from there down all elements are 2^-9 apart, as floats
    constexpr float kShift = 0x1p14f;  // from 2^14 are
    code = FloatBits(BitsToFloat(magnitude) + kShift) - FloatBits(kShift);
  } else if (magnitude < 0x7f800000u) {
    code = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1)) >> 20) - ((127 - 7) << 3);
    saturates = code > kLargest;
    if (saturates) code = kLargest;
  }
  out->bits = static_cast<uint8_t>(code | sign);
  return saturates;
}

/*! \brief Two pairs of float16 in registers, of the four elements in one. */
struct HalfPairs {
  uint32_t even;  //!< of bytes 0 and 2, byte 0 in the low half
  uint32_t odd;   //!< of bytes 1 and 3
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
/*! \brief What elements from ToHalves are multiplied by to be the values. */
constexpr float kHalvesFactor = 1;

__device__ inline HalfPairs ToHalves(uint32_t bytes) {
  const uint32_t sorted = __byte_perm(bytes, 0, 0x3120);
  HalfPairs pairs;
  asm("{\n.reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, low;\n"
      "cvt.rn.f16x2.e4m3x2 %1, high;\n}\n"
      : "=r"(pairs.even), "=r"(pairs.odd)
      : "r"(sorted));
  return pairs;
}
#else
// The bits as those of a float16, whose exponent has a larger bias. All elements are exact.
constexpr float kHalvesFactor = 256;

/*! \brief Of the bytes in the high half of each 16 bits. */
__device__ inline uint32_t ToHalfPair(uint32_t bytes) {
  const uint32_t magnitude = bytes >> 1 & 0x3f803f80u;
  // A carry into the highest bit of the exponent where exponent and mantissa are all ones: NaN.
  return magnitude | ((magnitude + 0x00800080u) & 0x40004000u) | (bytes & 0x80008000u);
}
__device__ inline HalfPairs ToHalves(uint32_t bytes) {
  return {ToHalfPair(bytes << 8), ToHalfPair(bytes)};
}
#endif

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_FLOAT8_CUH_
