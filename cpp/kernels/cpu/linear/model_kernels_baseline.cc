#include "kernels/cpu/linear/model_kernels-inl.h"

namespace kvctl {

const ModelKernels kModelKernelsBaseline = kModelKernels;

}  // namespace kvctl
