/*!
 * \file kernels/cuda/device/memory.h
 * \brief Device memory, and asynchronous uploads to it.
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_MEMORY_H_
#define KVCTL_KERNELS_CUDA_DEVICE_MEMORY_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "kernels/cuda/device/current_device.h"

namespace kvctl::cuda {

/*! \throws Error kRuntime that names the operation that failed. */
void Check(cudaError_t error, const char* what);

/*! \brief Memory on the current device. Growing it discards its contents. */
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  /*! \brief Reserves at least `bytes`, aligned to 256. Waits for the device if it grows. */
  void* Reserve(size_t bytes);
  size_t size() const { return size_; }
  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

/*! \brief Pinned host memory, for asynchronous copies. */
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  void* Reserve(size_t bytes);

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

/*! \brief A device buffer that the host refills repeatedly: each time in one asynchronous copy out
 * of pinned memory, which is reused once the device has read it. */
class Upload {
 public:
  Upload() = default;
  ~Upload();
  Upload(const Upload&) = delete;
  Upload& operator=(const Upload&) = delete;

  /*! \brief Reserves device memory, so that later copies keep the same address. */
  void Reserve(size_t bytes) { target_.Reserve(bytes); }
  /*! \brief What fits without another address. */
  size_t size() const { return target_.size(); }
  struct Part {
    const void* data;
    size_t bytes;
  };
  /*! \brief Starts the copy. Earlier work on the stream still reads the previous contents. */
  void Copy(const void* data, size_t bytes, cudaStream_t stream) { Copy({{data, bytes}}, stream); }
  /*! \brief The same, of parts one behind another. */
  void Copy(std::initializer_list<Part> parts, cudaStream_t stream);
  template <typename T>
  T* As() const {
    return target_.As<T>();
  }

 private:
  static constexpr int kNumStagings = 4;
  struct Staging {
    PinnedBuffer memory;
    cudaEvent_t read = nullptr;  // recorded after the copy
  };
  Staging stagings_[kNumStagings];
  int next_ = 0;
  DeviceBuffer target_;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_MEMORY_H_
