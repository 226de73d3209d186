/*!
 * \file core/support/host_device.h
 * \brief Marks functions that CUDA devices may call, so that host and device share one source.
 */
#ifndef KVCTL_CORE_SUPPORT_HOST_DEVICE_H_
#define KVCTL_CORE_SUPPORT_HOST_DEVICE_H_

#ifdef __CUDACC__
#define KVCTL_HD __host__ __device__
#else
#define KVCTL_HD
#endif

/*! \brief A table of constants. On a device it must be a variable there. */
#ifdef __CUDA_ARCH__
#define KVCTL_HD_TABLE static __device__ const
#else
#define KVCTL_HD_TABLE constexpr
#endif

#endif  // KVCTL_CORE_SUPPORT_HOST_DEVICE_H_
