/*!
 * \file cuda_runtime.h
 * \brief Replaces CUDA's header when g++ compiles the kernels to run on the CPU.
 *
 * It has only what cpp/kernels/cuda uses. A launch runs the threads of
 * the grid's blocks as fibers of one CPU thread (machine.h). Device memory is host memory.
 */
#ifndef KVCTL_TESTS_CUDA_EMULATE_CUDA_RUNTIME_H_
#define KVCTL_TESTS_CUDA_EMULATE_CUDA_RUNTIME_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "machine.h"

#define KVCTL_CUDA_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __align__(n) alignas(n)

using emulate::blockDim;
using emulate::blockIdx;
using emulate::dim3;
using emulate::gridDim;
using emulate::threadIdx;

using std::min;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline void __syncthreads() { emulate::SyncThreads(); }
inline void __syncwarp() { emulate::SyncWarp(); }
template <typename T>
T __shfl_xor_sync(uint32_t, T value, int mask) {
  return emulate::Shuffle(value, [=](int lane) { return lane ^ mask; });
}
template <typename T>
T __shfl_up_sync(uint32_t, T value, int delta) {
  return emulate::Shuffle(value, [=](int lane) { return lane >= delta ? lane - delta : lane; });
}
template <typename T>
T __shfl_sync(uint32_t, T value, int source) {
  return emulate::Shuffle(value, [=](int) { return source; });
}
inline int __all_sync(uint32_t mask, int predicate) {
  int all = predicate != 0;
  for (int delta = 16; delta > 0; delta /= 2) all &= __shfl_xor_sync(mask, all, delta);
  return all;
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  uint32_t bits = predicate != 0 ? uint32_t{1} << threadIdx.x % 32 : 0;
  for (int delta = 16; delta > 0; delta /= 2) bits |= __shfl_xor_sync(mask, bits, delta);
  return bits;
}

// A fiber is only left where it waits, so that atomic operations are plain ones and no fence is
// needed.
inline void __threadfence() {}
template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}

// The host API.
using cudaError_t = int;
using cudaStream_t = void*;
using cudaEvent_t = void*;
constexpr cudaError_t cudaSuccess = 0;
constexpr cudaError_t cudaErrorInvalidValue = 1;
constexpr cudaError_t cudaErrorMemoryAllocation = 2;
constexpr cudaError_t cudaErrorStreamCaptureUnsupported = 900;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaEventDisableTiming = 2 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess                 ? "no error"
         : error == cudaErrorMemoryAllocation ? "out of memory"
         : error == cudaErrorInvalidValue     ? "invalid argument"
                                              : "operation not permitted when stream is capturing";
}
inline cudaError_t cudaGetLastError() {
  return emulate::TakeFailure() ? cudaErrorInvalidValue : cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = emulate::CurrentDevice();
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  emulate::SetDevice(device);
  return cudaSuccess;
}
/*! \brief What may not be called while a stream is captured. */
inline cudaError_t OutsideCaptures() {
  return emulate::IsCapturing() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
/*! \brief The most shared memory that a block may have; KVCTL_EMULATED_SHARED_KB: of another GPU.
 */
inline size_t EmulatedSharedBytes() {
  const char* given = std::getenv("KVCTL_EMULATED_SHARED_KB");
  return given == nullptr ? emulate::kMaxSharedMemory : std::strtoull(given, nullptr, 10) * 1024;
}
/*! \brief Two multiprocessors: fewer than the blocks of most grids. */
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 2
           : attribute == cudaDevAttrComputeCapabilityMajor
               ? 9
               : static_cast<int>(EmulatedSharedBytes());
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, int, int shared_bytes) {
  emulate::Prepare(reinterpret_cast<const void*>(kernel), shared_bytes);
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel kernel, int,
                                                          size_t shared_bytes) {
  emulate::Prepare(reinterpret_cast<const void*>(kernel), shared_bytes);
  *blocks = shared_bytes > EmulatedSharedBytes() ? 0 : 2;
  return cudaSuccess;
}
/*! \brief New memory holds NaN patterns: no code may rely on zeros. */
template <typename T>
cudaError_t cudaMalloc(T** pointer, size_t size) {
  if (OutsideCaptures() != cudaSuccess) return OutsideCaptures();
  if (emulate::Fails()) return cudaErrorMemoryAllocation;
  *pointer = static_cast<T*>(std::aligned_alloc(256, (size + 256) / 256 * 256));
  if (*pointer == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*pointer, 0xFF, size);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}
template <typename T>
cudaError_t cudaMallocHost(T** pointer, size_t size) {
  return cudaMalloc(pointer, size);
}
inline cudaError_t cudaFreeHost(void* pointer) { return cudaFree(pointer); }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind,
                                   cudaStream_t stream) {
  emulate::UseStream(stream);
  if (size > 0) emulate::Do([=] { std::memcpy(to, from, size); });
  return cudaGetLastError();
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
  emulate::UseStream(stream);
  if (size > 0) emulate::Do([=] { std::memset(to, value, size); });
  return cudaGetLastError();
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = nullptr;
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
  return emulate::Fails() ? cudaErrorInvalidValue : cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return OutsideCaptures(); }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return OutsideCaptures(); }
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = emulate::IsCapturing() ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

#endif  // KVCTL_TESTS_CUDA_EMULATE_CUDA_RUNTIME_H_
