// "kvctl.checking.*": the mode that finds infinities and NaN where they come into being.
#include "kvctl/checking.h"

#include <tvm/ffi/reflection/registry.h>

#include "runtime/support/guard.h"

namespace kvctl {

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef()
      .def("kvctl.checking.get", Guarded(Checking), "Whether values are checked")
      .def("kvctl.checking.set", Guarded(SetChecking), "Turn checks on or off; return what was");
}

}  // namespace kvctl
