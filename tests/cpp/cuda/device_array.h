/*!
 * \file device_array.h
 * \brief An array on the device: GPU memory, or host memory if the kernels are emulated.
 */
#ifndef KVCTL_TESTS_CUDA_DEVICE_ARRAY_H_
#define KVCTL_TESTS_CUDA_DEVICE_ARRAY_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "check.h"

#ifdef KVCTL_CUDA_EMULATED
#include "emulate/machine.h"
#endif

namespace kvctl {

inline void Must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::abort();
}

template <typename T>
class DeviceArray {
 public:
  /*! \brief Poisoned: every byte 0xFF. */
  explicit DeviceArray(size_t size) : size_(size) {
    Must(cudaMalloc(&data_, size * sizeof(T) + 1));
    Must(cudaMemsetAsync(data_, 0xFF, size * sizeof(T), nullptr));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    Must(cudaMemcpyAsync(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice, nullptr));
    Must(cudaStreamSynchronize(nullptr));
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    Must(cudaMemcpyAsync(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost, nullptr));
    Must(cudaStreamSynchronize(nullptr));
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

/*! \brief Runs a test's body under each order of threads, or once on a real device. */
template <typename F>
void InEveryOrder(F&& body) {
#ifdef KVCTL_CUDA_EMULATED
  for (const emulate::Order order :
       {emulate::Order::kForward, emulate::Order::kBackward, emulate::Order::kShuffled}) {
    emulate::SetOrder(order);
    body();
  }
  emulate::SetOrder(emulate::Order::kForward);
#else
  body();
#endif
}

}  // namespace kvctl

#endif  // KVCTL_TESTS_CUDA_DEVICE_ARRAY_H_
