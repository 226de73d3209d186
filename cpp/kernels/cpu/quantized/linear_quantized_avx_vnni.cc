#include "kernels/cpu/quantized/linear_quantized-inl.h"

namespace kvctl {

const QuantizedKernels kQuantizedKernelsAvxVnni = kQuantizedKernels;

}  // namespace kvctl
