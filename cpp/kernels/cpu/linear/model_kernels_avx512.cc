#include "kernels/cpu/linear/model_kernels-inl.h"

namespace kvctl {

const ModelKernels kModelKernelsAvx512 = kModelKernels;

}  // namespace kvctl
