#include "distributed/nccl_library.h"

#include <dlfcn.h>

#include <memory>
#include <mutex>

#include "kvctl/error.h"

namespace kvctl {
namespace {

struct Loaded {
  std::mutex mutex;
  std::string path;
  std::unique_ptr<NcclLibrary> library;

  static Loaded& Instance() {
    static Loaded loaded;
    return loaded;
  }
};

template <typename F>
void Find(void* handle, const std::string& path, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(handle, name));
  if (*function == nullptr) {
    Throw(ErrorKind::kFileNotFound, path, " has no function ", name,
          ": kvctl needs NCCL of version 2.10 or later");
  }
}

std::unique_ptr<NcclLibrary> Open(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    Throw(ErrorKind::kFileNotFound, "NCCL cannot be loaded: ", dlerror());
  }
  auto library = std::make_unique<NcclLibrary>();
  const auto find = [&](const char* name, auto* function) { Find(handle, path, name, function); };
  find("ncclGetVersion", &library->GetVersion);
  find("ncclGetUniqueId", &library->GetUniqueId);
  find("ncclCommInitRank", &library->CommInitRank);
  find("ncclCommAbort", &library->CommAbort);
  find("ncclCommGetAsyncError", &library->CommGetAsyncError);
  find("ncclGetErrorString", &library->GetErrorString);
  find("ncclAllReduce", &library->AllReduce);
  find("ncclAllGather", &library->AllGather);
  find("ncclBroadcast", &library->Broadcast);
  find("ncclSend", &library->Send);
  find("ncclRecv", &library->Recv);
  find("ncclGroupStart", &library->GroupStart);
  find("ncclGroupEnd", &library->GroupEnd);
  library->GetLastError =
      reinterpret_cast<decltype(library->GetLastError)>(dlsym(handle, "ncclGetLastError"));
  return library;
}

}  // namespace

const NcclLibrary& NcclLibrary::Load(const std::string& path) {
  Loaded& loaded = Loaded::Instance();
  const std::lock_guard<std::mutex> lock(loaded.mutex);
  if (loaded.library == nullptr) {
    loaded.library = Open(path);
    loaded.path = path;
  } else if (loaded.path != path) {
    Throw(ErrorKind::kFileNotFound, "this process has loaded NCCL from ", loaded.path,
          " and cannot load ", path, " as well");
  }
  return *loaded.library;
}

const NcclLibrary& NcclLibrary::Get() {
  Loaded& loaded = Loaded::Instance();
  {
    const std::lock_guard<std::mutex> lock(loaded.mutex);
    if (loaded.library != nullptr) return *loaded.library;
  }
  return Load("libnccl.so.2");
}

}  // namespace kvctl
