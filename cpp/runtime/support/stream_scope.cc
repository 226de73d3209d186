#include "runtime/support/stream_scope.h"

#include <tvm/ffi/extra/c_env_api.h>

#include <mutex>

namespace kvctl {
namespace {

using Source = tvm::ffi::Optional<tvm::ffi::Function>;

std::mutex source_mutex;

/*! \brief Never destroyed: at the end of the process Python's functions are gone already. */
Source& SourceSlot() {
  static auto* const source = new Source();
  return *source;
}

}  // namespace

void SetStreamSource(const Source& source) {
  const std::lock_guard<std::mutex> lock(source_mutex);
  SourceSlot() = source;
}

void StreamScope::Enter() {
  if (CurrentStream(device_) != nullptr) return;
  Source source;
  {
    const std::lock_guard<std::mutex> lock(source_mutex);
    source = SourceSlot();
  }
  if (!source.has_value()) return;
  const auto stream = (*source)(device_.device_id).cast<int64_t>();
  if (stream == 0) return;
  TVMFFIEnvSetStream(device_.device_type, device_.device_id,
                     reinterpret_cast<TVMFFIStreamHandle>(stream), nullptr);
  entered_ = true;
}

StreamScope::~StreamScope() {
  if (entered_) TVMFFIEnvSetStream(device_.device_type, device_.device_id, nullptr, nullptr);
}

}  // namespace kvctl
