/*!
 * \file kernels/cuda/device/numbers.cuh
 * \brief float16 and bfloat16 as kernels hold them.
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_NUMBERS_CUH_
#define KVCTL_KERNELS_CUDA_DEVICE_NUMBERS_CUH_

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#ifndef KVCTL_CUDA_EMULATED
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include "kernels/convert.h"
#endif

namespace kvctl::cuda {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

__device__ inline float ToFloat(float value) { return value; }
__device__ inline void FromFloat(float value, float* out) { *out = value; }

#ifndef KVCTL_CUDA_EMULATED
__device__ inline float ToFloat(Half value) { return __half2float(__ushort_as_half(value.bits)); }
__device__ inline float ToFloat(Bfloat value) {
  return __bfloat162float(__ushort_as_bfloat16(value.bits));
}
__device__ inline void FromFloat(float value, Half* out) {
  out->bits = __half_as_ushort(__float2half_rn(value));
}
__device__ inline void FromFloat(float value, Bfloat* out) {
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
#else
inline float ToFloat(Half value) { return kvctl::ToFloat(kvctl::Float16{value.bits}); }
inline float ToFloat(Bfloat value) { return kvctl::ToFloat(kvctl::BFloat16{value.bits}); }
inline void FromFloat(float value, Half* out) {
  kvctl::FromFloat(value, reinterpret_cast<kvctl::Float16*>(out));
}
inline void FromFloat(float value, Bfloat* out) {
  kvctl::FromFloat(value, reinterpret_cast<kvctl::BFloat16*>(out));
}
#endif

/*! \brief Two adjacent elements in one register, the first in the low half. */
template <typename T>
__device__ uint32_t Pack(float first, float second) {
  T low, high;
  FromFloat(first, &low);
  FromFloat(second, &high);
  return static_cast<uint32_t>(low.bits) | static_cast<uint32_t>(high.bits) << 16;
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_NUMBERS_CUH_
