#include <tvm/ffi/error.h>

#include <array>
#include <new>
#include <string>

#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr std::array<ErrorKind, 9> kKinds = {
    ErrorKind::kValue,      ErrorKind::kIndex,          ErrorKind::kKey,
    ErrorKind::kType,       ErrorKind::kRuntime,        ErrorKind::kFileNotFound,
    ErrorKind::kOutOfPages, ErrorKind::kNotImplemented, ErrorKind::kInternal};

Error Unlocated(ErrorKind kind, std::string message) {
  return Error(ErrorSite(kind, SourceLocation{"", 0, ""}), std::move(message));
}

}  // namespace

Error AsError(const std::exception& caught) {
  if (const auto* error = dynamic_cast<const Error*>(&caught)) return *error;
  if (const auto* error = dynamic_cast<const tvm::ffi::Error*>(&caught)) {
    const std::string name = error->kind();
    for (ErrorKind kind : kKinds) {
      if (name == ErrorKindName(kind)) return Unlocated(kind, error->message());
    }
    return Unlocated(ErrorKind::kRuntime, name + ": " + error->message());
  }
  if (dynamic_cast<const std::bad_alloc*>(&caught) != nullptr) {
    return Unlocated(ErrorKind::kRuntime, "MemoryError: kvctl could not allocate host memory");
  }
  return Unlocated(ErrorKind::kRuntime, caught.what());
}

}  // namespace kvctl
