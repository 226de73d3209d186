#include "kernels/cuda/device/memory.h"

#include <algorithm>
#include <cstring>

#include "kvctl/error.h"

namespace kvctl::cuda {

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clear the error so that the next call does not report it
  Throw(ErrorKind::kRuntime, "CUDA: ", what, ": ", cudaGetErrorString(error));
}

int CurrentDevice() {
  int device = -1;
  if (cudaGetDevice(&device) == cudaSuccess) return device;
  cudaGetLastError();
  return -1;
}

void SetCurrentDevice(int device) {
  if (cudaSetDevice(device) != cudaSuccess) cudaGetLastError();
}

DeviceScope::DeviceScope(int device) {
  Check(cudaGetDevice(&before_), "querying the current device");
  if (before_ == device) return;
  Check(cudaSetDevice(device), "choosing a device");
  changed_ = true;
}

DeviceScope::~DeviceScope() {
  if (changed_) cudaSetDevice(before_);
}

DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }

void* DeviceBuffer::Reserve(size_t bytes) {
  if (bytes <= size_) return data_;
  const size_t size = std::max(bytes, size_ + size_ / 2);
  void* grown = nullptr;
  Check(cudaMalloc(&grown, size), "allocating memory on the device");
  cudaFree(data_);
  data_ = grown;
  size_ = size;
  return data_;
}

PinnedBuffer::~PinnedBuffer() { cudaFreeHost(data_); }

void* PinnedBuffer::Reserve(size_t bytes) {
  if (bytes <= size_) return data_;
  const size_t size = std::max(bytes, size_ + size_ / 2);
  void* grown = nullptr;
  Check(cudaMallocHost(&grown, size), "allocating pinned memory");
  cudaFreeHost(data_);
  data_ = grown;
  size_ = size;
  return data_;
}

Upload::~Upload() {
  for (Staging& staging : stagings_) {
    if (staging.read != nullptr) cudaEventDestroy(staging.read);
  }
}

void Upload::Copy(std::initializer_list<Part> parts, cudaStream_t stream) {
  size_t bytes = 0;
  for (const Part& part : parts) bytes += part.bytes;
  Staging& staging = stagings_[next_];
  next_ = (next_ + 1) % kNumStagings;
  if (staging.read == nullptr) {
    Check(cudaEventCreateWithFlags(&staging.read, cudaEventDisableTiming), "creating an event");
  } else {
    Check(cudaEventSynchronize(staging.read), "waiting for an earlier copy");
  }
  void* target = target_.Reserve(bytes);
  void* pinned = staging.memory.Reserve(bytes);
  char* to = static_cast<char*>(pinned);
  for (const Part& part : parts) {
    if (part.bytes > 0) std::memcpy(to, part.data, part.bytes);
    to += part.bytes;
  }
  Check(cudaMemcpyAsync(target, pinned, bytes, cudaMemcpyHostToDevice, stream),
        "copying to the device");
  Check(cudaEventRecord(staging.read, stream), "recording an event");
}

}  // namespace kvctl::cuda
