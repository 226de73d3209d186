// "kvctl.checkpoint.*": what compiling a checkpoint asks of its files.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "kvctl/error.h"
#include "runtime/model/files/file_md5.h"
#include "runtime/support/guard.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;

// How long a caller that has no file is not asked for one again.
constexpr std::chrono::milliseconds kPause(2);

ffi::Array<ffi::String> FileMd5(const ffi::Function& next) {
  using Clock = std::chrono::steady_clock;
  std::vector<std::string> paths, digests;
  Clock::time_point asked_again;
  HashFiles(
      [&](int64_t left, HashedFile* file) {
        if (left > 0 && Clock::now() < asked_again) return false;
        const auto path = next(left).cast<ffi::String>();
        if (path.empty()) {
          asked_again = Clock::now() + kPause;
          return false;
        }
        std::error_code missing;
        const auto nbytes = static_cast<int64_t>(std::filesystem::file_size(path.c_str(), missing));
        *file = {path, missing ? 0 : nbytes, paths.size()};
        paths.push_back(path);
        digests.emplace_back();
        return true;
      },
      [&](size_t index, const std::string& digest) { digests[index] = digest; },
      [] { return false; }, 16);
  ffi::Array<ffi::String> found;
  for (size_t i = 0; i < digests.size(); ++i) {
    if (digests[i].empty()) Throw(ErrorKind::kFileNotFound, "cannot read ", paths[i]);
    found.push_back(digests[i]);
  }
  return found;
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef().def(
      "kvctl.checkpoint.file_md5", Guarded(FileMd5),
      "MD5 of the files whose paths next(left) gives, sixteen at once in "
      "one thread; \"\" is none so far, and where left is 0 the end");
}

}  // namespace kvctl
