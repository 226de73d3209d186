/*!
 * \file runtime/verify/request_arrays.h
 * \brief The arrays of a verify request, for the functions that read it.
 */
#ifndef KVCTL_RUNTIME_VERIFY_REQUEST_ARRAYS_H_
#define KVCTL_RUNTIME_VERIFY_REQUEST_ARRAYS_H_

#include "runtime/verify/verify_batch.h"
#include "runtime/verify/verify_request.h"

namespace kvctl {

/*! \brief The tensors of a request that may lie on the device of the logits. */
struct RowTensors {
  tvm::runtime::Tensor logits;
  MaybeTensor draft_probs, draft_ids, bitmask;
};

RowTensors RowTensorsOf(const VerifyRequestObj& request);

/*! \brief Copies the tensors that lie on a device to the host. */
void MoveToHost(RowTensors* tensors);

/*!
 * \brief The arrays of a request. They point into its tensors.
 * \throws Error kValue or kType that says what does not fit.
 */
BatchArrays ArraysOf(const VerifyRequestObj& request, const RowTensors& tensors);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_VERIFY_REQUEST_ARRAYS_H_
