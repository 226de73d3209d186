// GCC 12's own AVX-512 intrinsics trip these (GCC bug 105593).
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "kernels/cpu/attention/attention-inl.h"

namespace kvctl {

const AttentionKernels kAttentionAmx = kAttentionKernels;

}  // namespace kvctl
