/*!
 * \file kernels/cuda/device/launch.cuh
 * \brief Kernel launches and dynamic shared memory: the two things for which nvcc has its own
 * syntax. Tests compile the kernels with g++ to run on the CPU (tests/cpp/cuda/emulate).
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_LAUNCH_CUH_
#define KVCTL_KERNELS_CUDA_DEVICE_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#ifndef KVCTL_CUDA_EMULATED
#define KVCTL_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define KVCTL_NOINLINE __noinline__
#else
#define KVCTL_DYNAMIC_SHARED(name) unsigned char* name = emulate::DynamicShared()
#define KVCTL_NOINLINE
#endif

namespace kvctl::cuda {

/*! \brief Dynamic shared memory that a block gets by default. */
constexpr size_t kDefaultSharedBytes = 48 * 1024;

/*! \brief Launches a kernel. Returns the error of the launch. */
template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
#ifndef KVCTL_CUDA_EMULATED
  kernel<<<grid, block, shared_bytes, stream>>>(Parameters(arguments)...);
#else
  (void)stream;
  emulate::Launch(grid, block, shared_bytes, [&] { kernel(Parameters(arguments)...); });
#endif
  return cudaGetLastError();
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_LAUNCH_CUH_
