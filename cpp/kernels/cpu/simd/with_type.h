/*!
 * \file kernels/cpu/simd/with_type.h
 * \brief Dispatches a run-time dtype to a compile-time type.
 */
#ifndef KVCTL_KERNELS_CPU_SIMD_WITH_TYPE_H_
#define KVCTL_KERNELS_CPU_SIMD_WITH_TYPE_H_

#include "kernels/convert.h"
#include "kvctl/dtype.h"

namespace kvctl {
// Anonymous on purpose: files compiled for different instruction sets must not share a copy.
namespace {

/*! \brief Calls f with a value of the C++ type of dtype. */
template <typename F>
void WithType(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat16:
      return f(Float16{});
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kFloat64:
    case DType::kInt8:
    case DType::kFloat8:
      break;  // activations never hold them
  }
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SIMD_WITH_TYPE_H_
