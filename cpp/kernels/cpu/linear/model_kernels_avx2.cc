#include "kernels/cpu/linear/model_kernels-inl.h"

namespace kvctl {

const ModelKernels kModelKernelsAvx2 = kModelKernels;

}  // namespace kvctl
