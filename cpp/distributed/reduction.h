/*!
 * \file distributed/reduction.h
 * \brief Elementwise reductions of every element type, for libraries that are handed a function.
 */
#ifndef KVCTL_DISTRIBUTED_REDUCTION_H_
#define KVCTL_DISTRIBUTED_REDUCTION_H_

#include <tvm/runtime/disco/builtin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/convert.h"
#include "kvctl/error.h"

namespace kvctl {

template <typename T>
T ReduceTwo(tvm::runtime::ReduceKind kind, T a, T b) {
  using tvm::runtime::ReduceKind;
  switch (kind) {
    case ReduceKind::kProd:
      return static_cast<T>(a * b);
    case ReduceKind::kMin:
      return std::min(a, b);
    case ReduceKind::kMax:
      return std::max(a, b);
    default:  // an average is a sum that is divided once at the end
      return static_cast<T>(a + b);
  }
}

/*! \brief out, a and b are (count,); out may be a or b. 16-bit types are reduced in float32. */
template <typename T>
void Reduce(tvm::runtime::ReduceKind kind, void* out, const void* a, const void* b, size_t count) {
  T* result = static_cast<T*>(out);
  const T* left = static_cast<const T*>(a);
  const T* right = static_cast<const T*>(b);
  for (size_t i = 0; i < count; ++i) {
    if constexpr (std::is_arithmetic_v<T>) {
      result[i] = ReduceTwo(kind, left[i], right[i]);
    } else {
      FromFloat(ReduceTwo(kind, ToFloat(left[i]), ToFloat(right[i])), result + i);
    }
  }
}

template <typename T>
void DivideBy(int divisor, void* data, size_t count) {
  T* values = static_cast<T*>(data);
  for (size_t i = 0; i < count; ++i) {
    if constexpr (std::is_arithmetic_v<T>) {
      values[i] = static_cast<T>(values[i] / static_cast<T>(divisor));
    } else {
      FromFloat(ToFloat(values[i]) / static_cast<float>(divisor), values + i);
    }
  }
}

/*! \brief Calls f with a value of the C++ type that dtype names; throws kType where none is. */
template <typename F>
void WithType(DLDataType dtype, F&& f) {
  if (dtype.lanes == 1) {
    switch (dtype.code * 256 + dtype.bits) {
      case kDLFloat * 256 + 16:
        return f(Float16());
      case kDLFloat * 256 + 32:
        return f(float());
      case kDLFloat * 256 + 64:
        return f(double());
      case kDLBfloat * 256 + 16:
        return f(BFloat16());
      case kDLInt * 256 + 8:
        return f(int8_t());
      case kDLInt * 256 + 32:
        return f(int32_t());
      case kDLInt * 256 + 64:
        return f(int64_t());
      case kDLUInt * 256 + 8:
        return f(uint8_t());
      case kDLUInt * 256 + 32:
        return f(uint32_t());
      case kDLUInt * 256 + 64:
        return f(uint64_t());
      default:
        break;
    }
  }
  Throw(ErrorKind::kType,
        "an allreduce takes float16, bfloat16, float32, float64, int8, int32, int64, uint8, uint32 "
        "or uint64, and got type code ",
        int{dtype.code}, " with ", int{dtype.bits}, " bits and ", int{dtype.lanes}, " lanes");
}

}  // namespace kvctl

#endif  // KVCTL_DISTRIBUTED_REDUCTION_H_
