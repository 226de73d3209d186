#include "kernels/cpu/quantized/linear_quantized-inl.h"

namespace kvctl {

const QuantizedKernels kQuantizedKernelsAvx2 = kQuantizedKernels;

}  // namespace kvctl
