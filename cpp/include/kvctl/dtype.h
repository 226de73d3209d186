/*!
 * \file kvctl/dtype.h
 * \brief The element types of caches and activations.
 */
#ifndef KVCTL_DTYPE_H_
#define KVCTL_DTYPE_H_

#include <cstdint>

namespace kvctl {

enum class DType { kFloat32, kFloat16, kBFloat16 };

/*! \brief Bytes of one element. */
inline int64_t DTypeSize(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

/*! \brief NumPy's (and TVM's) name of a type. */
inline const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    default:
      return "float32";
  }
}

}  // namespace kvctl

#endif  // KVCTL_DTYPE_H_
