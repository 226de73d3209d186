#include <algorithm>

#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/attention/attention_tile.cuh"

namespace kvctl::cuda {
namespace {

template <int kQueryWarps>
int32_t SharedBytes(int32_t head_dim) {
  return head_dim == 64    ? TileShape<64, kQueryWarps>::kSharedBytes
         : head_dim == 128 ? TileShape<128, kQueryWarps>::kSharedBytes
                           : TileShape<256, kQueryWarps>::kSharedBytes;
}

}  // namespace

int32_t AttentionBlocksPerMultiprocessor(int32_t head_dim, bool few_queries, int32_t shared_bytes) {
  constexpr int32_t kMost = 4, kReserved = 1024;  // bytes of each block that CUDA reserves
  const int32_t bytes = few_queries ? SharedBytes<1>(head_dim) : SharedBytes<4>(head_dim);
  // Registers: up to 232 of kThreads threads each, of 65536.
  const int32_t by_registers = few_queries ? kMost : 2;
  return std::max(1, std::min(shared_bytes / (bytes + kReserved), by_registers));
}

cudaError_t Attention(const AttentionParams& params, const AttentionLaunch& launch,
                      cudaStream_t stream) {
  if (params.page.dtype == DType::kFloat32) return cudaErrorInvalidValue;
  cudaError_t error = cudaErrorInvalidValue;
  if (params.page.head_dim == 64) error = AttendHeads<64>(params, launch, stream);
  if (params.page.head_dim == 128) error = AttendHeads<128>(params, launch, stream);
  if (params.page.head_dim == 256) error = AttendHeads<256>(params, launch, stream);
  if (error != cudaSuccess || launch.merge_blocks == 0) return error;
  return MergePartials(params, launch.merge_blocks, stream);
}

}  // namespace kvctl::cuda
