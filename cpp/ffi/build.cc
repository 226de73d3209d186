// "kvctl.build.*": what this library is.
#include <omp.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>

#include "build_info.h"
#include "kernels/isa.h"
#include "kvctl/api.h"
#include "runtime/support/guard.h"
#include "runtime/support/stream_scope.h"

namespace kvctl {
namespace {

tvm::ffi::String Version() { return KVCTL_VERSION; }
tvm::ffi::String TVMVersion() { return KVCTL_TVM_VERSION; }
tvm::ffi::String CpuInstructions() { return IsaName(CpuIsa()); }
int64_t OpenMPThreads() { return omp_get_max_threads(); }
void InitDevice(const tvm::ffi::String& device) { Init(device.c_str()); }

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef()
      .def("kvctl.build.get_version", Guarded(Version), "kvctl's version")
      .def("kvctl.build.get_tvm_version", Guarded(TVMVersion),
           "The TVM version kvctl was compiled against")
      .def("kvctl.build.get_isa", Guarded(CpuInstructions),
           "The instruction set of the CPU kernels: baseline, avx2 or avx512")
      .def("kvctl.build.get_openmp_threads", Guarded(OpenMPThreads),
           "How many threads a parallel region of the caller's would have")
      .def("kvctl.build.init", Guarded(InitDevice), "Check the loaded TVM and make a device ready")
      .def("kvctl.build.set_stream_source", Guarded(SetStreamSource),
           "Set what names the CUDA stream of the caller's framework");
}

}  // namespace kvctl
