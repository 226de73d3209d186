/*!
 * \file kernels/cuda/cache_device.h
 * \brief The device half of a paged cache: uploads plans and launches kernels.
 */
#ifndef KVCTL_KERNELS_CUDA_CACHE_DEVICE_H_
#define KVCTL_KERNELS_CUDA_CACHE_DEVICE_H_

#include "kernels/cuda_plugin.h"

namespace kvctl::cuda {

CudaCache* CreateCache(const CudaCacheConfig& config);

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_CACHE_DEVICE_H_
