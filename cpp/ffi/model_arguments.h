/*!
 * \file ffi/model_arguments.h
 * \brief The tensors that compiled models pass to "kvctl.model.*", checked.
 */
#ifndef KVCTL_FFI_MODEL_ARGUMENTS_H_
#define KVCTL_FFI_MODEL_ARGUMENTS_H_

#include <tvm/ffi/container/tensor.h>

#include <cstdint>

#include "kvctl/error.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

using tvm::ffi::TensorView;

inline constexpr DLDataType kFloat32{kDLFloat, 32, 1};
inline constexpr DLDataType kInt32{kDLInt, 32, 1};
inline constexpr DLDataType kBytes{kDLUInt, 8, 1};

/*! \brief Refuses a tensor that is not contiguous CPU memory of this type with at least min_dims
 * axes. */
inline void CheckTensor(const TensorView& tensor, DLDataType dtype, int min_dims,
                        const char* name) {
  if (tensor.device().device_type != kDLCPU) {
    Throw(ErrorKind::kValue, name, " must be on the CPU");
  }
  if (tensor.dtype() != dtype) {
    Throw(ErrorKind::kType, name, " must be ", DTypeText(dtype), ", not ",
          DTypeText(tensor.dtype()));
  }
  if (tensor.ndim() < min_dims || !tensor.IsContiguous()) {
    Throw(ErrorKind::kValue, name, " must be contiguous and have ", min_dims,
          " or more dimensions, not ", tensor.ndim());
  }
}

template <typename T>
T* Data(const TensorView& tensor) {
  return reinterpret_cast<T*>(static_cast<char*>(tensor.data_ptr()) + tensor.byte_offset());
}

/*! \brief A tensor seen as rows of its last axis. */
struct Rows {
  int64_t rows;
  int64_t cols;
};

inline Rows RowsOf(const TensorView& tensor) {
  const int64_t cols = tensor.size(-1);
  int64_t rows = 1;
  for (int i = 0; i + 1 < tensor.ndim(); ++i) rows *= tensor.size(i);
  return {rows, cols};
}

inline void CheckRows(const TensorView& tensor, int64_t rows, int64_t cols, const char* name) {
  CheckTensor(tensor, kFloat32, 1, name);
  const Rows found = RowsOf(tensor);
  if (found.rows != rows || found.cols != cols) {
    Throw(ErrorKind::kValue, name, " must be ", rows, " rows of ", cols, ", not ", found.rows,
          " of ", found.cols);
  }
}

/*! \brief A tensor of any shape that is contiguous float32 on the CPU, and `out` of as many
 * elements; returns their number. */
inline int64_t CheckSameSize(const TensorView& x, const TensorView& out) {
  CheckTensor(x, kFloat32, 1, "x");
  CheckTensor(out, kFloat32, 1, "out");
  if (x.numel() != out.numel()) {
    Throw(ErrorKind::kValue, "out must have ", x.numel(), " elements, not ", out.numel());
  }
  return x.numel();
}

}  // namespace kvctl

#endif  // KVCTL_FFI_MODEL_ARGUMENTS_H_
