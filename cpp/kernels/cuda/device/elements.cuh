/*!
 * \file kernels/cuda/device/elements.cuh
 * \brief Elements of arrays whose type is known at run time: for kernels that move few bytes.
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_ELEMENTS_CUH_
#define KVCTL_KERNELS_CUDA_DEVICE_ELEMENTS_CUH_

#include <cstdint>

#include "kernels/cuda/device/numbers.cuh"
#include "kernels/kv_copy.h"
#include "kvctl/dtype.h"

namespace kvctl::cuda {

__device__ inline float LoadElement(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat16:
      return ToFloat(static_cast<const Half*>(data)[index]);
    case DType::kBFloat16:
      return ToFloat(static_cast<const Bfloat*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

__device__ inline void StoreElement(float value, void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat16:
      return FromFloat(value, static_cast<Half*>(data) + index);
    case DType::kBFloat16:
      return FromFloat(value, static_cast<Bfloat*>(data) + index);
    default:
      static_cast<float*>(data)[index] = value;
  }
}

/*! \brief PageShape::Offset. */
__device__ inline int64_t SlotOffset(const PageShape& page, int32_t slot, int32_t part,
                                     int32_t head) {
  const int64_t index = slot / page.page_size;
  return (((index * 2 + part) * page.num_kv_heads + head) * page.page_size +
          slot % page.page_size) *
         page.head_dim;
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_ELEMENTS_CUH_
