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
#ifdef KVCTL_CUDA_EMULATED
#include <tuple>
#endif

#ifndef KVCTL_CUDA_EMULATED
#define KVCTL_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define KVCTL_NOINLINE __noinline__
#else
#define KVCTL_DYNAMIC_SHARED(name) unsigned char* name = emulate::DynamicShared()
#define KVCTL_NOINLINE
#endif

namespace kvctl::cuda {

/*!
 * \brief Loads a kernel and lets it have more than 48 KB of shared memory.
 *
 * Both are done when a cache is created, so that a first launch can be captured.
 * \param blocks out, how many blocks of it run on a multiprocessor at once; may be nullptr.
 */
template <typename... Parameters>
cudaError_t Prepare(void (*kernel)(Parameters...), int threads, size_t shared_bytes, int* blocks) {
  constexpr size_t kDefaultSharedBytes = 48 * 1024;
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  int resident = 0;
  const cudaError_t error =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, shared_bytes);
  if (blocks != nullptr) *blocks = resident;
  return error;
}

/*! \brief Waits until the work before this kernel in its stream has ended and what it wrote is
 * visible. A kernel that LaunchOverlapping launches calls it first, in every thread. */
__device__ inline void WaitForPrevious() {
#if defined(KVCTL_CUDA_EMULATED)
  emulate::WaitForPrevious();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/*! \brief Lets the blocks of the next kernel, if it was launched by LaunchOverlapping, come onto
 * the device once all blocks of this one have: they wait there. */
__device__ inline void LetNextCome() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/*! \brief Launches a kernel, prepared before if it uses more than 48 KB of shared memory. Returns
 * the error of the launch. */
template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
#ifndef KVCTL_CUDA_EMULATED
  kernel<<<grid, block, shared_bytes, stream>>>(Parameters(arguments)...);
#else
  emulate::CheckPrepared(reinterpret_cast<const void*>(kernel), shared_bytes);
  emulate::UseStream(stream);
  emulate::Do([=, values = std::tuple<Parameters...>(Parameters(arguments)...)] {
    emulate::Launch(grid, block, shared_bytes, [&] { std::apply(kernel, values); });
  });
#endif
  return cudaGetLastError();
}

/*! \brief Launch of a kernel whose blocks may come onto the device while the one before still runs
 * ("programmatic dependent launch"); \param overlaps whether the device can do so, from 9.0 on. */
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchOverlapping(bool overlaps, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                              size_t shared_bytes, cudaStream_t stream,
                              const Arguments&... arguments) {
#ifndef KVCTL_CUDA_EMULATED
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlaps ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  return error == cudaSuccess ? cudaGetLastError() : error;
#else
  emulate::CheckPrepared(reinterpret_cast<const void*>(kernel), shared_bytes);
  emulate::UseStream(stream);
  emulate::Do([=, values = std::tuple<Parameters...>(Parameters(arguments)...)] {
    emulate::Launch(grid, block, shared_bytes, [&] { std::apply(kernel, values); }, overlaps);
  });
  return cudaGetLastError();
#endif
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_LAUNCH_CUH_
