// "kvctl.checkpoint.*": what compiling a checkpoint asks of its files.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kvctl/error.h"
#include "runtime/model/file_md5.h"
#include "runtime/support/guard.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;

ffi::Array<ffi::String> FileMd5(const ffi::Array<ffi::String>& paths) {
  std::vector<std::string> digests(paths.size());
  size_t at = 0;
  HashFiles(
      [&](HashedFile* file) {
        if (at == paths.size()) return false;
        *file = {paths[static_cast<int64_t>(at)], -1, at};
        ++at;
        return true;
      },
      [&](size_t index, const std::string& digest) { digests[index] = digest; },
      [] { return false; }, static_cast<int>(std::min<size_t>(paths.size(), 16)));
  ffi::Array<ffi::String> found;
  for (size_t i = 0; i < digests.size(); ++i) {
    if (digests[i].empty()) {
      Throw(ErrorKind::kFileNotFound, "cannot read ", paths[static_cast<int64_t>(i)]);
    }
    found.push_back(digests[i]);
  }
  return found;
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef().def("kvctl.checkpoint.file_md5", Guarded(FileMd5),
                                        "MD5 of files, sixteen at once in one thread");
}

}  // namespace kvctl
