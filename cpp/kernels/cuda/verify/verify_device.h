/*!
 * \file kernels/cuda/verify/verify_device.h
 * \brief Verify calls on a device: uploads plans, launches kernels, fetches outcomes.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_VERIFY_DEVICE_H_
#define KVCTL_KERNELS_CUDA_VERIFY_VERIFY_DEVICE_H_

#include "kernels/cuda_plugin.h"

namespace kvctl::cuda {

CudaVerify* CreateVerify(int device);

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_VERIFY_DEVICE_H_
