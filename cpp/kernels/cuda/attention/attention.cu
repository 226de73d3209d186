#include <algorithm>

#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/attention/attention_tile.cuh"

namespace kvctl::cuda {

namespace {

template <int kHeadDim>
size_t MostSharedBytes() {
  return std::max(TileShape<kHeadDim, 4>::kSharedBytes, TileShape<kHeadDim, 1>::kSharedBytes);
}

}  // namespace

size_t AttentionSharedBytes(int32_t head_dim) {
  return head_dim == 64    ? MostSharedBytes<64>()
         : head_dim == 128 ? MostSharedBytes<128>()
                           : MostSharedBytes<256>();
}

cudaError_t PrepareAttention(const PageShape& page, AttentionOccupancy* occupancy) {
  cudaError_t error = cudaErrorInvalidValue;
  if (page.head_dim == 64) error = PrepareHeads<64>(page.dtype, occupancy);
  if (page.head_dim == 128) error = PrepareHeads<128>(page.dtype, occupancy);
  if (page.head_dim == 256) error = PrepareHeads<256>(page.dtype, occupancy);
  return error == cudaSuccess ? PrepareMerge(page.head_dim) : error;
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
