/*!
 * \file ffi/mask_argument.h
 * \brief A mask as it crosses the FFI: one flat int32 tensor.
 */
#ifndef KVCTL_FFI_MASK_ARGUMENT_H_
#define KVCTL_FFI_MASK_ARGUMENT_H_

#include <tvm/runtime/tensor.h>

#include "kvctl/mask.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

/*!
 * \brief The mask that encoded holds.
 * \throws Error kType if it is not an int32 tensor on the CPU; kValue if it holds no mask.
 */
inline Mask DecodeMask(const tvm::runtime::Tensor& encoded) {
  const auto* data = TensorData<const int32_t>(encoded, "an encoded mask", {kAnyExtent});
  return Mask::Decode(data, encoded->shape[0]);
}

}  // namespace kvctl

#endif  // KVCTL_FFI_MASK_ARGUMENT_H_
