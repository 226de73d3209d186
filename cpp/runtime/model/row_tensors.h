/*!
 * \file runtime/model/row_tensors.h
 * \brief Copies of rows between tensors of one device.
 */
#ifndef KVCTL_RUNTIME_MODEL_ROW_TENSORS_H_
#define KVCTL_RUNTIME_MODEL_ROW_TENSORS_H_

#include <tvm/runtime/tensor.h>

#include <cstdint>
#include <vector>

namespace kvctl {

/*! \brief Elements of a row, which is everything behind the first axis. */
inline int64_t RowSize(const tvm::runtime::Tensor& tensor) {
  int64_t size = 1;
  for (int axis = 1; axis < tensor->ndim; ++axis) size *= tensor->shape[axis];
  return size;
}

/*! \brief Copies `count` elements from one place to another, each counted in elements. */
inline void CopyElements(const tvm::runtime::Tensor& source, int64_t from, int64_t count,
                         const tvm::runtime::Tensor& target, int64_t to) {
  const int64_t bytes = (source->dtype.bits + 7) / 8;
  DLTensor read = *source.operator->(), written = *target.operator->();
  int64_t shape[1] = {count};
  read.shape = written.shape = shape;
  read.ndim = written.ndim = 1;
  read.strides = written.strides = nullptr;
  read.byte_offset += from * bytes;
  written.byte_offset += to * bytes;
  tvm::runtime::Tensor::CopyFromTo(&read, &written);
}

/*! \brief Copies rows [begin, end) of source into target, from row `at` on. */
inline void CopyRows(const tvm::runtime::Tensor& source, int64_t begin, int64_t end,
                     const tvm::runtime::Tensor& target, int64_t at) {
  const int64_t size = RowSize(source);
  CopyElements(source, begin * size, (end - begin) * size, target, at * size);
}

/*! \brief Some rows of (rows, width). */
inline tvm::runtime::Tensor TakeRows(const tvm::runtime::Tensor& all,
                                     const std::vector<int32_t>& rows) {
  const auto count = static_cast<int64_t>(rows.size());
  auto taken = tvm::runtime::Tensor::Empty({count, all->shape[1]}, all->dtype, all->device);
  for (int64_t i = 0; i < count; ++i) CopyRows(all, rows[i], rows[i] + 1, taken, i);
  return taken;
}

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_MODEL_ROW_TENSORS_H_
