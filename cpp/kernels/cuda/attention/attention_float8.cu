// Pages of 8 bits. One type of queries, and the head_dims that most models have, since each kernel
// makes the library larger; others get the plain kernel.
#include "kernels/cuda/attention/attention_kernel.cuh"

namespace kvctl::cuda {

template cudaError_t AttendFloat8<64>(const AttentionParams& params, const AttentionLaunch& launch,
                                      cudaStream_t stream);
template cudaError_t AttendFloat8<128>(const AttentionParams& params, const AttentionLaunch& launch,
                                       cudaStream_t stream);

template cudaError_t PrepareFloat8<64>(DType dtype, size_t max_shared_bytes,
                                       AttentionOccupancy* occupancy);
template cudaError_t PrepareFloat8<128>(DType dtype, size_t max_shared_bytes,
                                        AttentionOccupancy* occupancy);

}  // namespace kvctl::cuda
