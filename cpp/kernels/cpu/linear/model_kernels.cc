#include "kernels/cpu/linear/model_kernels.h"

namespace kvctl {

const ModelKernels& ModelKernelsFor(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return kModelKernelsAvx512;
    case Isa::kAvx2:
      return kModelKernelsAvx2;
    default:
      return kModelKernelsBaseline;
  }
}

}  // namespace kvctl
