#include "kernels/cuda/attention/attention_kernel.cuh"

namespace kvctl::cuda {

template cudaError_t AttendHeads<112>(const AttentionParams& params, const AttentionLaunch& launch,
                                      cudaStream_t stream);

template cudaError_t PrepareHeads<112>(DType dtype, size_t max_shared_bytes,
                                       AttentionOccupancy* occupancy);

}  // namespace kvctl::cuda
