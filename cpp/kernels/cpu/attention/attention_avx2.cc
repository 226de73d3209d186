#include "kernels/cpu/attention/attention-inl.h"

namespace kvctl {

const AttentionKernels kAttentionAvx2 = kAttentionKernels;

}  // namespace kvctl
