#include <algorithm>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_tile.cuh"

namespace kvctl::cuda {
namespace {

int32_t SharedBytes(int32_t head_dim) {
  return head_dim == 64 ? TileShape<64, 4>::kSharedBytes
         : head_dim == 128
             ? TileShape<128, 4>::kSharedBytes
             : std::max(TileShape<256, 4>::kSharedBytes, TileShape<256, 1>::kSharedBytes);
}

}  // namespace

int32_t AttentionBlocksPerMultiprocessor(int32_t head_dim, int32_t shared_bytes) {
  constexpr int32_t kMost = 4, kReserved = 1024;  // bytes of each block that CUDA keeps
  return std::clamp(shared_bytes / (SharedBytes(head_dim) + kReserved), 1, kMost);
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
