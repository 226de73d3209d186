/*!
 * \file runtime/support/device.h
 * \brief Chooses between the CPU and CUDA.
 *
 * The CUDA kernels live in libkvctl_cuda.so, which is opened when a CUDA device is first asked for,
 * so that libkvctl.so itself needs nothing of CUDA.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_DEVICE_H_
#define KVCTL_RUNTIME_SUPPORT_DEVICE_H_

#include <tvm/ffi/container/tensor.h>

#include "kernels/cuda_plugin.h"

namespace kvctl {

inline bool IsCpu(DLDevice device) { return device.device_type == kDLCPU; }
inline bool IsCuda(DLDevice device) { return device.device_type == kDLCUDA; }

/*!
 * \brief The CUDA kernels.
 * \throws Error kNotImplemented if this build has none, or they cannot be loaded, with the reason.
 */
const CudaPlugin& CudaKernels();

/*! \brief The stream on which TVM queues work of a device: a cudaStream_t. */
void* CurrentStream(DLDevice device);

/*!
 * \brief Refuses an allocation that the device's memory cannot hold.
 *
 * Without it, a mistake in a size would fill the memory until the process is killed.
 * \throws Error kValue with both sizes.
 */
void RequireMemory(DLDevice device, double bytes, const char* what);

/*! \brief The verifier of a CUDA device, kept from call to call. \throws as CudaKernels. */
CudaVerify& VerifierOf(DLDevice device);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_DEVICE_H_
