#include "kernels/cpu/quantized/linear_quantized-inl.h"

namespace kvctl {

const QuantizedKernels kQuantizedKernelsBaseline = kQuantizedKernels;

}  // namespace kvctl
