#include "kernels/cuda/cache_device.h"
#include "kernels/cuda/device/current_device.h"
#include "kernels/cuda/verify/verify_device.h"
#include "kernels/cuda_plugin.h"
#include "kvctl/api.h"

extern "C" KVCTL_API const kvctl::CudaPlugin* kvctl_cuda_plugin() {
  static const kvctl::CudaPlugin plugin = {kvctl::kCudaPluginVersion, kvctl::cuda::CreateCache,
                                           kvctl::cuda::CreateVerify, kvctl::cuda::CurrentDevice,
                                           kvctl::cuda::SetCurrentDevice};
  return &plugin;
}
