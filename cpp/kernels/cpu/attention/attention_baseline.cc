#include "kernels/cpu/attention/attention-inl.h"

namespace kvctl {

const AttentionKernels kAttentionBaseline = kAttentionKernels;

}  // namespace kvctl
