#include "runtime/support/device.h"

#include <dlfcn.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <tvm/runtime/device_api.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "kvctl/error.h"
#include "runtime/support/current_device.h"

namespace kvctl {
namespace {

/*! \brief Beside libkvctl.so; the environment may name another, which tests do to run the kernels
 * on the CPU. */
std::string PluginPath() {
  if (const char* path = std::getenv("KVCTL_CUDA_LIBRARY")) return path;
  Dl_info self;
  if (dladdr(reinterpret_cast<const void*>(&PluginPath), &self) == 0) return "";
  std::string path = self.dli_fname;
  path.resize(path.find_last_of('/') + 1);
  return path + "libkvctl_cuda.so";
}

/*! \brief The plugin, once it is open. */
std::atomic<const CudaPlugin*> opened{nullptr};
/*! \brief The current device of the thread that opened it, then: what scopes begun before put back.
 */
thread_local int device_at_opening = -1;

const CudaPlugin& Open() {
  const std::string path = PluginPath();
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open
  if (library == nullptr) {
    Throw(ErrorKind::kNotImplemented, "kvctl's CUDA kernels cannot be loaded: ", dlerror(),
          ". They are built where nvcc and the CUDA runtime are (see docs/machines/cuda.md)");
  }
  using Entry = const CudaPlugin* (*)();
  const auto entry = reinterpret_cast<Entry>(dlsym(library, kCudaPluginSymbol));
  if (entry == nullptr || entry()->version != kCudaPluginVersion) {
    Throw(ErrorKind::kNotImplemented, path, " does not belong to this kvctl: build both together");
  }
  device_at_opening = entry()->current_device();
  opened = entry();
  return *entry();
}

/*! \brief Loads TVM's own part for CUDA devices, which lies beside its runtime. */
void LoadTvmCuda() {
  const auto is_there = [] { return tvm::ffi::Function::GetGlobal("device_api.cuda").has_value(); };
  if (is_there()) return;
  Dl_info runtime;
  std::string path;
  const auto symbol = reinterpret_cast<const void*>(&tvm::runtime::DeviceAPI::Get);
  if (dladdr(symbol, &runtime) != 0) path = runtime.dli_fname;
  path.resize(path.find_last_of('/') + 1);
  path += "libtvm_runtime_cuda.so";
  if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    Throw(ErrorKind::kNotImplemented, "TVM's CUDA runtime cannot be loaded: ", dlerror());
  }
  if (!is_there()) Throw(ErrorKind::kNotImplemented, path, " brings no CUDA device");
}

}  // namespace

const CudaPlugin& CudaKernels() {
  static const CudaPlugin& plugin = Open();  // tried again if it threw
  LoadTvmCuda();
  return plugin;
}

void KeepCurrentDevice::Note() {
  const CudaPlugin* plugin = opened.load(std::memory_order_acquire);
  before_ = plugin == nullptr ? -1 : plugin->current_device();
}

KeepCurrentDevice::~KeepCurrentDevice() {
  const CudaPlugin* plugin = opened.load(std::memory_order_acquire);
  if (plugin == nullptr) return;
  const int before = before_ < 0 ? device_at_opening : before_;
  if (before >= 0 && plugin->current_device() != before) plugin->set_current_device(before);
}

void* CurrentStream(DLDevice device) {
  return TVMFFIEnvGetStream(device.device_type, device.device_id);
}

void RequireMemory(DLDevice device, double bytes, const char* what) {
  constexpr double kAddressSpace = 0x1p47, kGiB = 0x1p30;
  const double memory =
      IsCpu(device) ? 1.0 * sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGE_SIZE) : kAddressSpace;
  if (bytes > memory) {
    Throw(ErrorKind::kValue, what, " would take ", bytes / kGiB, " GiB; ", memory / kGiB,
          " GiB is all there is");
  }
}

CudaVerify& VerifierOf(DLDevice device) {
  // One for each device and thread: a verifier's scratch memory is in use during a call.
  static thread_local std::map<int, std::unique_ptr<CudaVerify>> verifiers;
  std::unique_ptr<CudaVerify>& verifier = verifiers[device.device_id];
  if (verifier == nullptr) verifier.reset(CudaKernels().create_verify(device.device_id));
  return *verifier;
}

}  // namespace kvctl
