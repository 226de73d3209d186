/*!
 * \file runtime/support/tensor_view.h
 * \brief Checks of tensors that users hand over, and the raw pointers that kernels take.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_TENSOR_VIEW_H_
#define KVCTL_RUNTIME_SUPPORT_TENSOR_VIEW_H_

#include <tvm/runtime/tensor.h>

#include <initializer_list>
#include <string>

#include "kvctl/dtype.h"

namespace kvctl {

/*! \brief Matches any extent in CheckTensor. */
constexpr int64_t kAnyExtent = -1;

/*! \brief "float32". */
std::string DTypeText(DLDataType dtype);

/*!
 * \brief The element type of a tensor.
 * \throws Error kType for one that is not float32, float16 or bfloat16.
 */
DType FloatDType(DLDataType dtype, const char* what);
DLDataType ToDLDataType(DType dtype);

/*!
 * \brief Checks a tensor's device, contiguity and shape.
 * \param what The tensor's name in messages.
 * \param shape The expected extents, kAnyExtent where any will do.
 * \throws Error kValue that says what was expected.
 */
void CheckTensor(const DLTensor* tensor, const char* what, DLDevice device,
                 std::initializer_list<int64_t> shape);

/*! \brief "(2, 3)". */
std::string ShapeString(const int64_t* shape, int ndim);

/*! \brief The address of the first element. */
inline void* DataPointer(const DLTensor* tensor) {
  return static_cast<char*>(tensor->data) + tensor->byte_offset;
}

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_TENSOR_VIEW_H_
