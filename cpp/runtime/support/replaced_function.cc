#include "runtime/support/replaced_function.h"

#include <optional>

#include "kvctl/error.h"

namespace kvctl {

namespace ffi = tvm::ffi;

void ReplacedFunction::Install(const ffi::Function& function) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (original_.has_value()) return;
  const auto original = ffi::Function::GetGlobal(name_);
  if (!original.has_value()) {
    Throw(ErrorKind::kRuntime, name_, " is not registered: TVM's runtime is not loaded");
  }
  ffi::Function::SetGlobal(name_, function, true);
  original_ = original;
}

void ReplacedFunction::Uninstall() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!original_.has_value()) return;
  ffi::Function::SetGlobal(name_, original_.value(), true);
  original_ = std::nullopt;
}

bool ReplacedFunction::installed() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return original_.has_value();
}

}  // namespace kvctl
