#include "runtime/support/tensor_view.h"

#include <algorithm>
#include <optional>
#include <sstream>

#include "kvctl/error.h"

namespace kvctl {
namespace {

/*! \brief "the CPU", "cuda:0". */
std::string DeviceText(DLDevice device) {
  if (device.device_type == kDLCPU) return "the CPU";
  const std::string name =
      device.device_type == kDLCUDA ? "cuda" : "device type " + std::to_string(device.device_type);
  return name + ":" + std::to_string(device.device_id);
}

}  // namespace

std::string DTypeText(DLDataType dtype) {
  // tvm-ffi has no name for it.
  if (dtype.code == kDLComplex) return "complex" + std::to_string(dtype.bits);
  return tvm::ffi::DLDataTypeToString(dtype);
}

namespace {

std::optional<DType> FindFloatDType(DLDataType dtype) {
  if (dtype.lanes == 1 && dtype.code == kDLFloat && dtype.bits == 32) return DType::kFloat32;
  if (dtype.lanes == 1 && dtype.code == kDLFloat && dtype.bits == 16) return DType::kFloat16;
  if (dtype.lanes == 1 && dtype.code == kDLBfloat && dtype.bits == 16) return DType::kBFloat16;
  return std::nullopt;
}

constexpr DLDataType kInt8Type = {kDLInt, 8, 1};
constexpr DLDataType kFloat8Type = {kDLFloat8_e4m3fn, 8, 1};

}  // namespace

DType FloatDType(DLDataType dtype, const char* what) {
  if (const auto found = FindFloatDType(dtype)) return *found;
  Throw(ErrorKind::kType, what, " must be float32, float16 or bfloat16, got ", DTypeText(dtype));
}

DType PageDType(DLDataType dtype) {
  if (dtype == kInt8Type) return DType::kInt8;
  if (dtype == kFloat8Type) return DType::kFloat8;
  if (const auto found = FindFloatDType(dtype)) return *found;
  Throw(ErrorKind::kType, "the cache's dtype must be float32, float16, bfloat16 or int8, or ",
        "float8_e4m3fn on CUDA, got ", DTypeText(dtype));
}

DLDataType ValueDType(DLDataType pages) {
  const bool eight = pages == kInt8Type || pages == kFloat8Type;
  return eight ? ToDLDataType(DType::kFloat32) : pages;
}

DLDataType ToDLDataType(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return {kDLFloat, 16, 1};
    case DType::kBFloat16:
      return {kDLBfloat, 16, 1};
    case DType::kFloat64:
      return {kDLFloat, 64, 1};
    case DType::kInt8:
      return kInt8Type;
    case DType::kFloat8:
      return kFloat8Type;
    default:
      return {kDLFloat, 32, 1};
  }
}

std::string ShapeText(tvm::ffi::ShapeView shape) {
  std::ostringstream text;
  text << "(";
  for (size_t i = 0; i < shape.size(); ++i) {
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

void CheckDType(const DLTensor* tensor, const char* what, DLDataType dtype) {
  if (tensor->dtype == dtype) return;
  Throw(ErrorKind::kType, what, " must be ", DTypeText(dtype), ", got ", DTypeText(tensor->dtype));
}

void CheckTensor(const DLTensor* tensor, const char* what, DLDevice device,
                 tvm::ffi::ShapeView shape) {
  CheckShape(tensor, what, device, shape);
  if (!tvm::ffi::IsContiguous(*tensor)) Throw(ErrorKind::kValue, what, " must be contiguous");
}

void CheckShape(const DLTensor* tensor, const char* what, DLDevice device,
                tvm::ffi::ShapeView shape) {
  const tvm::ffi::ShapeView found(tensor->shape, tensor->ndim);
  const auto matches = [](int64_t extent, int64_t expected) {
    return expected == kAnyExtent || extent == expected;
  };
  if (!std::equal(found.begin(), found.end(), shape.begin(), shape.end(), matches)) {
    Throw(ErrorKind::kValue, what, " must have shape ", ShapeText(shape), ", got ",
          ShapeText(found));
  }
  if (!SameDevice(tensor->device, device)) {
    Throw(ErrorKind::kValue, what, " must lie on ", DeviceText(device),
          " but lies on another device, ", DeviceText(tensor->device));
  }
}

}  // namespace kvctl
