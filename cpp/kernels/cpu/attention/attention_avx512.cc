// GCC 12's own AVX-512 intrinsics trip these (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "kernels/cpu/attention/attention-inl.h"

namespace kvctl {

const AttentionKernels kAttentionAvx512 = kAttentionKernels;

}  // namespace kvctl
