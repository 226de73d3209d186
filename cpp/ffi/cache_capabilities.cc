// "kvctl.cache.get_capabilities": what the paged cache does on which device.
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/reflection/registry.h>

#include "runtime/cache/backend/cache_feature.h"
#include "runtime/support/guard.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;

/*! \brief A list of {name, description, devices, refusal}, as JSON. */
ffi::String Capabilities() {
  ffi::json::Array table;
  for (const CacheCapability& capability : CacheCapabilities()) {
    ffi::json::Array devices;
    if (capability.on_cpu) devices.push_back(ffi::String("cpu"));
    if (capability.on_cuda) devices.push_back(ffi::String("cuda"));
    ffi::json::Object row;
    row.Set("name", ffi::String(capability.name));
    row.Set("description", ffi::String(capability.description));
    row.Set("devices", devices);
    row.Set("refusal", ffi::String(capability.refusal));
    table.push_back(row);
  }
  return ffi::json::Stringify(table);
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef().def("kvctl.cache.get_capabilities", Guarded(Capabilities),
                        "What the cache does on which device, as JSON");
}

}  // namespace kvctl
