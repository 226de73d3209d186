/*!
 * \file benchmarks/cpp/cuda/device.h
 * \brief Memory, graphs and times on a device: a GPU, or the emulation, whose times mean nothing.
 */
#ifndef KVCTL_BENCHMARKS_CUDA_DEVICE_H_
#define KVCTL_BENCHMARKS_CUDA_DEVICE_H_

#include <cuda_runtime.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "../report.h"

namespace kvctl_bench {

inline void Must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

/*! \brief Memory on the device; new memory is poisoned: every byte 0xFF, a NaN of any type. */
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t size) : size_(size) {
    Must(cudaMalloc(&data_, size));
    Poison();
  }
  DeviceMemory(const void* from, size_t size) : DeviceMemory(size) {
    Must(cudaMemcpyAsync(data_, from, size, cudaMemcpyHostToDevice, nullptr));
    Must(cudaStreamSynchronize(nullptr));
  }
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  ~DeviceMemory() { cudaFree(data_); }

  char* data() const { return data_; }
  size_t size() const { return size_; }
  void Poison() { Must(cudaMemsetAsync(data_, 0xFF, size_, nullptr)); }
  /*! \brief Fills it with repetitions of a block: the first by hand, then by doubling. */
  void Repeat(const std::vector<uint16_t>& block) {
    size_t done = std::min(size_, block.size() * sizeof(uint16_t));
    Must(cudaMemcpyAsync(data_, block.data(), done, cudaMemcpyHostToDevice, nullptr));
    while (done < size_) {
      const size_t more = std::min(done, size_ - done);
      Must(cudaMemcpyAsync(data_ + done, data_, more, cudaMemcpyDeviceToDevice, nullptr));
      done += more;
    }
    Must(cudaStreamSynchronize(nullptr));
  }
  template <typename T>
  std::vector<T> Read() const {
    std::vector<T> values(size_ / sizeof(T));
    Must(cudaMemcpyAsync(values.data(), data_, size_, cudaMemcpyDeviceToHost, nullptr));
    Must(cudaStreamSynchronize(nullptr));
    return values;
  }

 private:
  char* data_ = nullptr;
  size_t size_;
};

#ifdef KVCTL_CUDA_EMULATED
/*! \brief What a graph would hold, done at once. */
template <typename F>
Samples GraphTimes(int32_t repeats, F&& queue) {
  Samples samples;
  for (int32_t i = 0; i < repeats; ++i) samples.Add(Microseconds([&] { queue(nullptr); }));
  return samples;
}
inline std::string DeviceName() { return "emulation"; }
inline size_t L2Bytes() { return 1 << 10; }
#else
/*! \brief Times of a graph of what `queue(stream)` queues: replayed between events. */
template <typename F>
Samples GraphTimes(int32_t repeats, F&& queue) {
  cudaStream_t stream;
  Must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  queue(stream);
  Must(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t run;
  Must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  queue(stream);
  Must(cudaStreamEndCapture(stream, &graph));
  Must(cudaGraphInstantiate(&run, graph, 0));
  cudaEvent_t begin, end;
  Must(cudaEventCreate(&begin));
  Must(cudaEventCreate(&end));
  Samples samples;
  for (int32_t i = -2; i < repeats; ++i) {  // two to warm up
    Must(cudaEventRecord(begin, stream));
    Must(cudaGraphLaunch(run, stream));
    Must(cudaEventRecord(end, stream));
    Must(cudaEventSynchronize(end));
    float milliseconds = 0;
    Must(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 0) samples.Add(1e3 * milliseconds);
  }
  Must(cudaEventDestroy(begin));
  Must(cudaEventDestroy(end));
  Must(cudaGraphExecDestroy(run));
  Must(cudaGraphDestroy(graph));
  Must(cudaStreamDestroy(stream));
  return samples;
}
inline std::string DeviceName() {
  cudaDeviceProp properties;
  Must(cudaGetDeviceProperties(&properties, 0));
  return properties.name;
}
inline size_t L2Bytes() {
  int bytes = 0;
  Must(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, 0));
  return static_cast<size_t>(bytes);
}
#endif

/*! \brief Bytes a microsecond that a copy within the device reads and writes together. */
inline double CopyBandwidth(size_t size) {
  DeviceMemory source(size), target(size);
  const Samples samples = GraphTimes(10, [&](cudaStream_t stream) {
    Must(cudaMemcpyAsync(target.data(), source.data(), size, cudaMemcpyDeviceToDevice, stream));
  });
  return 2.0 * size / samples.Least();
}

}  // namespace kvctl_bench

#endif  // KVCTL_BENCHMARKS_CUDA_DEVICE_H_
