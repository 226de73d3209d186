#include "kernels/cpu/linear/linear_quantized-inl.h"

namespace kvctl {

const QuantizedKernels kQuantizedKernelsVnni = kQuantizedKernels;

}  // namespace kvctl
