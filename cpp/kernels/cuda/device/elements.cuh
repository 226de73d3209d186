/*!
 * \file kernels/cuda/device/elements.cuh
 * \brief Elements of arrays whose type is known at run time: for kernels that move few bytes.
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_ELEMENTS_CUH_
#define KVCTL_KERNELS_CUDA_DEVICE_ELEMENTS_CUH_

#include <cstdint>

#include "kernels/cuda/device/float8.cuh"
#include "kernels/cuda/device/float8_scales.h"
#include "kernels/cuda/device/numbers.cuh"
#include "kernels/kv_copy.h"
#include "kvctl/dtype.h"

namespace kvctl::cuda {

/*! \brief The type of q where pages have elements of type T. */
template <typename T>
struct QueryOfPages {
  using Type = T;
};
template <>
struct QueryOfPages<Float8> {
  using Type = Half;
};
template <typename T>
using QueryOf = typename QueryOfPages<T>::Type;

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

/*! \brief What the bytes of K (part 0) or V (part 1) of one head are multiplied by; 1 for other
 * types of pages. */
__device__ inline float ScaleOf(const Float8Scales& float8, int32_t num_kv_heads, int32_t part,
                                int32_t head) {
  return float8.scales == nullptr ? 1.f : float8.scales[part * num_kv_heads + head];
}
__device__ inline void CountSaturated(const Float8Scales& float8, int32_t saturated) {
  if (saturated > 0) atomicAdd(float8.num_saturated, static_cast<unsigned long long>(saturated));
}

/*! \brief Reads an element of pages, with kFloat8 in units of its scale. */
__device__ inline float LoadFromPages(const void* pages, DType dtype, int64_t index) {
  if (dtype == DType::kFloat8) return ToFloat(static_cast<const Float8*>(pages)[index]);
  return LoadElement(pages, dtype, index);
}

/*! \brief Writes an element of pages, with kFloat8 in units of its scale.
 * \return RoundToFloat8's; false for other types. */
__device__ inline bool StoreInPages(float value, void* pages, DType dtype, int64_t index) {
  if (dtype == DType::kFloat8) return RoundToFloat8(value, static_cast<Float8*>(pages) + index);
  StoreElement(value, pages, dtype, index);
  return false;
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
