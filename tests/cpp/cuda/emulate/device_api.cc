// TVM's device API of the emulated device: host memory with device type CUDA, so that TVM's tensors
// and the cache can be "on CUDA" on a machine without a GPU.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <cstdlib>
#include <cstring>

#include "machine.h"

namespace {

int64_t num_allocations = 0;

class EmulatedDevice final : public tvm::runtime::DeviceAPI {
 public:
  // As TVM's own device API, what allocates, frees, copies or waits leaves its device current.
  void SetDevice(tvm::Device device) final { emulate::SetDevice(device.device_id); }
  void GetAttr(tvm::Device device, tvm::runtime::DeviceAttrKind kind, tvm::ffi::Any* value) final {
    if (kind == tvm::runtime::kExist) *value = device.device_id < 2;
  }
  void* AllocDataSpace(tvm::Device device, size_t size, size_t, DLDataType) final {
    SetDevice(device);
    ++num_allocations;
    const size_t bytes = (size + 256) / 256 * 256;
    void* data = std::aligned_alloc(256, bytes);
    std::memset(data, 0xFF, bytes);
    return data;
  }
  using DeviceAPI::AllocDataSpace;
  void FreeDataSpace(tvm::Device device, void* data) final {
    SetDevice(device);
    std::free(data);
  }
  void StreamSync(tvm::Device device, TVMStreamHandle) final { SetDevice(device); }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t size,
                      tvm::Device device_from, tvm::Device device_to, DLDataType,
                      TVMStreamHandle) final {
    SetDevice(device_from.device_type == kDLCUDA ? device_from : device_to);
    std::memcpy(static_cast<char*>(to) + to_offset, static_cast<const char*>(from) + from_offset,
                size);
  }
};

tvm::ffi::Array<int64_t> Streams() {
  tvm::ffi::Array<int64_t> streams;
  for (void* stream : emulate::TakeStreams()) streams.push_back(reinterpret_cast<int64_t>(stream));
  return streams;
}
int64_t NumAllocations() { return num_allocations; }
int64_t EndCapture() { return emulate::EndCapture(); }
void Replay(int64_t graph) { emulate::Replay(static_cast<int>(graph)); }

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef()
      .def("device_api.cuda",
           [] {
             static EmulatedDevice device;
             return static_cast<void*>(&device);
           })
      .def("emulate.take_streams", Streams, "The streams that work was queued on since last asked")
      .def("emulate.get_num_allocations", NumAllocations, "Tensors' allocations until now")
      .def("emulate.get_device", emulate::CurrentDevice, "The device that this thread has chosen")
      .def(
          "emulate.set_device",
          [](int64_t device) { emulate::SetDevice(static_cast<int>(device)); }, "Choose a device")
      .def(
          "emulate.fail_call", [](int64_t number) { emulate::FailCall(static_cast<int>(number)); },
          "Let the call of this number from now on, from 1, fail; 0: none")
      .def("emulate.begin_capture", emulate::BeginCapture)
      .def("emulate.end_capture", EndCapture)
      .def("emulate.replay", Replay);
}
