/*!
 * \file kernels/cuda/device/current_device.h
 * \brief The device on which a thread's CUDA calls work.
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_CURRENT_DEVICE_H_
#define KVCTL_KERNELS_CUDA_DEVICE_CURRENT_DEVICE_H_

namespace kvctl::cuda {

/*! \brief The calling thread's current device, or -1 if CUDA cannot say. */
int CurrentDevice();
void SetCurrentDevice(int device);

/*! \brief Makes a device current during its lifetime. */
class DeviceScope {
 public:
  /*! \throws Error kRuntime if the device cannot be made current. */
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_CURRENT_DEVICE_H_
