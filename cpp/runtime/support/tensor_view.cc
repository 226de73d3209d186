#include "runtime/support/tensor_view.h"

#include <sstream>

#include "kvctl/error.h"

namespace kvctl {

std::string DTypeText(DLDataType dtype) {
  // tvm-ffi has no name for it.
  if (dtype.code == kDLComplex) return "complex" + std::to_string(dtype.bits);
  return tvm::ffi::DLDataTypeToString(dtype);
}

DType FloatDType(DLDataType dtype, const char* what) {
  if (dtype.lanes == 1 && dtype.code == kDLFloat && dtype.bits == 32) return DType::kFloat32;
  if (dtype.lanes == 1 && dtype.code == kDLFloat && dtype.bits == 16) return DType::kFloat16;
  if (dtype.lanes == 1 && dtype.code == kDLBfloat && dtype.bits == 16) return DType::kBFloat16;
  Throw(ErrorKind::kType, what, " must be float32, float16 or bfloat16, got ", DTypeText(dtype));
}

DLDataType ToDLDataType(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return {kDLFloat, 16, 1};
    case DType::kBFloat16:
      return {kDLBfloat, 16, 1};
    case DType::kFloat64:
      return {kDLFloat, 64, 1};
    default:
      return {kDLFloat, 32, 1};
  }
}

std::string ShapeString(const int64_t* shape, int ndim) {
  std::ostringstream text;
  text << "(";
  for (int i = 0; i < ndim; ++i) {
    if (i > 0) text << ", ";
    if (shape[i] == kAnyExtent) {
      text << "any";
    } else {
      text << shape[i];
    }
  }
  text << ")";
  return text.str();
}

void CheckTensor(const DLTensor* tensor, const char* what, DLDevice device,
                 std::initializer_list<int64_t> shape) {
  bool fits = tensor->ndim == static_cast<int>(shape.size());
  for (int i = 0; fits && i < tensor->ndim; ++i) {
    const int64_t expected = shape.begin()[i];
    fits = expected == kAnyExtent || tensor->shape[i] == expected;
  }
  if (!fits) {
    Throw(ErrorKind::kValue, what, " must have shape ",
          ShapeString(shape.begin(), static_cast<int>(shape.size())), ", got ",
          ShapeString(tensor->shape, tensor->ndim));
  }
  if (tensor->device.device_type != device.device_type ||
      tensor->device.device_id != device.device_id) {
    Throw(ErrorKind::kValue, what, " lies on another device than the cache");
  }
  if (!tvm::ffi::IsContiguous(*tensor)) Throw(ErrorKind::kValue, what, " must be contiguous");
}

}  // namespace kvctl
