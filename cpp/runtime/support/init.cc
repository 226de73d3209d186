#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "build_info.h"
#include "kvctl/api.h"
#include "kvctl/error.h"
#include "openmp/openmp_wait.h"
#include "runtime/support/device.h"

namespace kvctl {
namespace {

/*! \brief A library to look for among those loaded, and the build-id found. */
struct LoadedLibrary {
  const char* name;
  const char* expected_id;
  bool loaded = false;
  std::string path;
  std::string build_id;
};

std::string Hex(const unsigned char* bytes, size_t size) {
  std::string text;
  char digits[3];
  for (size_t i = 0; i < size; ++i) {
    std::snprintf(digits, sizeof(digits), "%02x", bytes[i]);
    text += digits;
  }
  return text;
}

std::string BuildIdInNotes(const unsigned char* notes, size_t size) {
  size_t at = 0;
  while (at + sizeof(ElfW(Nhdr)) <= size) {
    ElfW(Nhdr) header;
    std::memcpy(&header, notes + at, sizeof(header));
    const size_t name_at = at + sizeof(header);
    const size_t desc_at = name_at + (header.n_namesz + 3) / 4 * 4;
    if (header.n_type == NT_GNU_BUILD_ID && header.n_namesz == 4 &&
        std::memcmp(notes + name_at, "GNU", 4) == 0) {
      return Hex(notes + desc_at, header.n_descsz);
    }
    at = desc_at + (header.n_descsz + 3) / 4 * 4;
  }
  return "";
}

int InspectObject(dl_phdr_info* info, size_t, void* data) {
  auto* library = static_cast<LoadedLibrary*>(data);
  const char* slash = std::strrchr(info->dlpi_name, '/');
  if (std::strcmp(slash ? slash + 1 : info->dlpi_name, library->name) != 0) return 0;
  library->loaded = true;
  library->path = info->dlpi_name;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr) & segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) continue;
    const auto* notes = reinterpret_cast<const unsigned char*>(info->dlpi_addr + segment.p_vaddr);
    library->build_id = BuildIdInNotes(notes, segment.p_memsz);
    if (!library->build_id.empty()) break;
  }
  return 1;
}

void CheckBuild(const char* name, const char* expected_id) {
  LoadedLibrary library{name, expected_id, false, "", ""};
  dl_iterate_phdr(InspectObject, &library);
  if (!library.loaded) {
    Throw(ErrorKind::kRuntime, "kvctl::Init: ", name, " is not loaded; link the TVM runtime");
  }
  if (library.build_id != library.expected_id) {
    Throw(ErrorKind::kRuntime, "kvctl ", KVCTL_VERSION, " was compiled against TVM ",
          KVCTL_TVM_VERSION, " (build-id ", expected_id, " of ", name, "), but this process holds ",
          library.path, " with build-id ", library.build_id,
          ": rebuild kvctl against that TVM, or load the one it was built for");
  }
}

void WarnOfSpinningThreads() {
  static const bool warned = [] {
    if (OpenMPWaitSetting() != OpenMPWait::kTooLate) return false;
    std::fputs(
        "kvctl: warning: OpenMP was loaded before kvctl, so its threads spin for milliseconds "
        "while they wait. On a machine that has other work, decoding is then several times "
        "slower. Set OMP_WAIT_POLICY=passive or GOMP_SPINCOUNT=10000 before the program starts, "
        "or link it with kvctl::kvctl.\n",
        stderr);
    return true;
  }();
  static_cast<void>(warned);
}

}  // namespace

void Init(const char* device) {
  const bool cuda = std::strcmp(device, "cuda") == 0;
  if (!cuda && std::strcmp(device, "cpu") != 0) {
    Throw(ErrorKind::kValue, "kvctl::Init: device must be \"cpu\" or \"cuda\", got \"", device,
          "\"");
  }
  CheckBuild("libtvm_runtime.so", KVCTL_TVM_RUNTIME_BUILD_ID);
  CheckBuild("libtvm_ffi.so", KVCTL_TVM_FFI_BUILD_ID);
  // Read when TVM's pool starts. Pinning the calling thread would pin OpenMP's team with it.
  setenv("TVM_BIND_THREADS", "0", 0);
  setenv("TVM_THREAD_POOL_SPIN_COUNT", "0", 0);
  WarnOfSpinningThreads();
  if (cuda) CudaKernels();
}

}  // namespace kvctl
