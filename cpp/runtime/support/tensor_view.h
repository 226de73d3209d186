/*!
 * \file runtime/support/tensor_view.h
 * \brief Checks of tensors that users hand over, and the raw pointers that kernels take.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_TENSOR_VIEW_H_
#define KVCTL_RUNTIME_SUPPORT_TENSOR_VIEW_H_

#include <tvm/runtime/tensor.h>

#include <initializer_list>
#include <string>
#include <type_traits>

#include "kvctl/dtype.h"

namespace kvctl {

constexpr DLDevice kHostDevice{kDLCPU, 0};
/*! \brief The expected extent where any will do. */
constexpr int64_t kAnyExtent = -1;

/*! \brief "float32". */
std::string DTypeText(DLDataType dtype);

/*!
 * \brief The element type of a tensor.
 * \throws Error kType for one that is not float32, float16 or bfloat16.
 */
DType FloatDType(DLDataType dtype, const char* what);
/*!
 * \brief The element type of a cache's pages.
 * \throws Error kType for one that is none of FloatDType's, not int8 and not float8_e4m3fn.
 */
DType PageDType(DLDataType dtype);
/*! \brief The type in which a cache of such pages gives out K and V: float32 for int8 and
 * float8_e4m3fn. */
DLDataType ValueDType(DLDataType pages);
DLDataType ToDLDataType(DType dtype);

/*!
 * \brief Checks a tensor's device and shape; its strides may be any.
 * \throws Error as CheckTensor.
 */
void CheckShape(const DLTensor* tensor, const char* what, DLDevice device,
                tvm::ffi::ShapeView shape);
inline void CheckShape(const DLTensor* tensor, const char* what, DLDevice device,
                       std::initializer_list<int64_t> shape) {
  CheckShape(tensor, what, device, tvm::ffi::ShapeView(shape.begin(), shape.size()));
}

/*!
 * \brief Checks a tensor's device, contiguity and shape.
 * \param what The tensor's name in messages.
 * \param shape The expected extents, kAnyExtent where any will do.
 * \throws Error kValue that says what was expected.
 */
void CheckTensor(const DLTensor* tensor, const char* what, DLDevice device,
                 tvm::ffi::ShapeView shape);
inline void CheckTensor(const DLTensor* tensor, const char* what, DLDevice device,
                        std::initializer_list<int64_t> shape) {
  CheckTensor(tensor, what, device, tvm::ffi::ShapeView(shape.begin(), shape.size()));
}

/*! \brief "(2, 3)". */
std::string ShapeText(tvm::ffi::ShapeView shape);

inline bool SameDevice(DLDevice a, DLDevice b) {
  return a.device_type == b.device_type && a.device_id == b.device_id;
}

/*! \brief The tensor itself if it lies on the device, else a copy there. */
inline tvm::runtime::Tensor OnDevice(const tvm::runtime::Tensor& tensor, DLDevice device) {
  return SameDevice(tensor->device, device) ? tensor : tensor.CopyTo(device);
}

/*! \brief The address of the first element. */
inline void* DataPointer(const DLTensor* tensor) {
  return static_cast<char*>(tensor->data) + tensor->byte_offset;
}

/*! \throws Error kType for another element type, with both. */
void CheckDType(const DLTensor* tensor, const char* what, DLDataType dtype);

/*! \brief The element type of a C++ number. */
template <typename T>
constexpr DLDataType DLDataTypeOf() {
  static_assert(std::is_arithmetic_v<T>);
  const DLDataTypeCode code = std::is_floating_point_v<T> ? kDLFloat
                              : std::is_signed_v<T>       ? kDLInt
                                                          : kDLUInt;
  return {static_cast<uint8_t>(code), sizeof(T) * 8, 1};
}

/*!
 * \brief The elements of a tensor, after a check of its type, device, contiguity and shape.
 * \tparam T the element type; const where they are only read.
 * \throws Error kType for another element type; as CheckTensor.
 */
template <typename T>
T* TensorData(const tvm::runtime::Tensor& tensor, const char* what,
              std::initializer_list<int64_t> shape, DLDevice device = kHostDevice) {
  const DLTensor* raw = tensor.operator->();
  CheckDType(raw, what, DLDataTypeOf<std::remove_const_t<T>>());
  CheckTensor(raw, what, device, shape);
  return static_cast<T*>(DataPointer(raw));
}

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_TENSOR_VIEW_H_
