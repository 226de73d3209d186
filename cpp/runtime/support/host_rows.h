/*!
 * \file runtime/support/host_rows.h
 * \brief The rows of a float32 tensor on the host, copied only where they lie elsewhere.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_HOST_ROWS_H_
#define KVCTL_RUNTIME_SUPPORT_HOST_ROWS_H_

#include <tvm/runtime/tensor.h>

#include <cstdint>

namespace kvctl {

/*! \brief A view of (rows, width) float32, or a copy of it. */
class HostRows {
 public:
  explicit HostRows(const tvm::runtime::Tensor& rows) : tensor_(rows) {
    if (rows->device.device_type != kDLCPU) tensor_ = rows.CopyTo(DLDevice{kDLCPU, 0});
  }
  const float* data() const {
    return reinterpret_cast<const float*>(static_cast<const char*>(tensor_->data) +
                                          tensor_->byte_offset);
  }
  const float* row(int64_t i) const { return data() + i * width(); }
  int64_t num_rows() const { return tensor_->shape[0]; }
  int64_t width() const { return tensor_->shape[1]; }

 private:
  tvm::runtime::Tensor tensor_;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_HOST_ROWS_H_
