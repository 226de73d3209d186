/*!
 * \file runtime/support/current_device.h
 * \brief The current CUDA device is the caller's: what kvctl does leaves it as it was.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_CURRENT_DEVICE_H_
#define KVCTL_RUNTIME_SUPPORT_CURRENT_DEVICE_H_

namespace kvctl {

/*!
 * \brief Puts the calling thread's current CUDA device back when it is destroyed.
 *
 * TVM makes a device current to allocate, free or copy there, and leaves it so. Does nothing until
 * CUDA's kernels are loaded.
 */
class KeepCurrentDevice {
 public:
  KeepCurrentDevice() { Note(); }
  ~KeepCurrentDevice();
  KeepCurrentDevice(const KeepCurrentDevice&) = delete;
  KeepCurrentDevice& operator=(const KeepCurrentDevice&) = delete;

  /*! \brief The device that is current now is the one to put back. */
  void Note();

 private:
  int before_ = -1;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_CURRENT_DEVICE_H_
