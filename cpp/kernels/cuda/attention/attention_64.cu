#include "kernels/cuda/attention/attention_kernel.cuh"

namespace kvctl::cuda {

template cudaError_t AttendHeads<64>(const AttentionParams& params, const AttentionLaunch& launch,
                                     cudaStream_t stream);

}  // namespace kvctl::cuda
