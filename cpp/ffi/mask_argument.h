/*!
 * \file ffi/mask_argument.h
 * \brief A mask as it crosses the FFI: one flat int32 tensor.
 */
#ifndef KVCTL_FFI_MASK_ARGUMENT_H_
#define KVCTL_FFI_MASK_ARGUMENT_H_

#include <tvm/runtime/tensor.h>

#include "kvctl/error.h"
#include "kvctl/mask.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

/*!
 * \brief The mask that encoded holds.
 * \throws Error kType if it is not an int32 tensor on the CPU; kValue if it holds no mask.
 */
inline Mask DecodeMask(const tvm::runtime::Tensor& encoded) {
  CheckTensor(encoded.operator->(), "an encoded mask", {kDLCPU, 0}, {kAnyExtent});
  if (encoded->dtype.code != kDLInt || encoded->dtype.bits != 32) {
    Throw(ErrorKind::kType, "an encoded mask must be int32");
  }
  return Mask::Decode(static_cast<const int32_t*>(DataPointer(encoded.operator->())),
                      encoded->shape[0]);
}

}  // namespace kvctl

#endif  // KVCTL_FFI_MASK_ARGUMENT_H_
