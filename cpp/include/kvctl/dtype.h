/*!
 * \file kvctl/dtype.h
 * \brief The element types of caches, activations, logits and distributions.
 */
#ifndef KVCTL_DTYPE_H_
#define KVCTL_DTYPE_H_

#include <cstdint>

namespace kvctl {

/*!
 * \brief An element type. Only distributions may be kFloat64, and only a cache's pages kInt8,
 * 8-bit integers with one scale for each token, KV head, and K or V, or kFloat8, which is e4m3
 * without infinities, with one scale for each layer, KV head, and K or V.
 */
enum class DType { kFloat32, kFloat16, kBFloat16, kFloat64, kInt8, kFloat8 };

/*! \brief Bytes of one element. */
inline int64_t DTypeSize(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    case DType::kInt8:
    case DType::kFloat8:
      return 1;
    default:
      return 2;
  }
}

/*! \brief NumPy's (and TVM's) name of a type. */
inline const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat64:
      return "float64";
    case DType::kInt8:
      return "int8";
    case DType::kFloat8:
      return "float8_e4m3fn";
    default:
      return "float32";
  }
}

}  // namespace kvctl

#endif  // KVCTL_DTYPE_H_
