#include "kernels/cuda/device/elements.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/kv_copy/slots.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;

/*! \brief A block per (layer, K or V, head) moves its slots in order, one batch at a time: all
 * sources of a batch are read before its targets are written. */
__global__ void MoveSlotsKernel(PageShape shape, void* const* layers, const SlotPair* pairs,
                                int32_t num_copies, int32_t num_pairs) {
  const int32_t vectors = static_cast<int32_t>(shape.head_dim *
                                               (shape.dtype == DType::kFloat32  ? 4
                                                : shape.dtype == DType::kFloat8 ? 1
                                                                                : 2) /
                                               sizeof(uint4));
  const int32_t lane = threadIdx.x % vectors, way = threadIdx.x / vectors;
  const int32_t ways = blockDim.x / vectors;  // pairs that are moved in parallel
  const int32_t head = blockIdx.x % shape.num_kv_heads;
  const int32_t part = blockIdx.x / shape.num_kv_heads % 2;
  auto* pages = static_cast<uint4*>(layers[blockIdx.x / (2 * shape.num_kv_heads)]);
  const auto address = [&](int32_t slot) {
    return pages + SlotOffset(shape, slot, part, head) / shape.head_dim * vectors + lane;
  };
  const bool works = way < ways;
  for (int32_t phase = 0; phase < 2; ++phase) {
    const int32_t end = phase == 0 ? num_copies : num_pairs;
    for (int32_t batch = phase == 0 ? 0 : num_copies; batch < end; batch += ways * kUnroll) {
      uint4 held[kUnroll];
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int32_t at = batch + i * ways + way;
        if (works && at < end) held[i] = *address(pairs[at].source);
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int32_t at = batch + i * ways + way;
        if (works && at < end) *address(pairs[at].target) = held[i];
      }
      __syncthreads();
    }
  }
}

}  // namespace

cudaError_t MoveSlots(const PageShape& shape, void* const* layers, int32_t num_layers,
                      const SlotPair* pairs, int32_t num_copies, int32_t num_pairs,
                      cudaStream_t stream) {
  if (num_pairs == 0 || num_layers == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(num_layers * 2 * shape.num_kv_heads);
  return Launch(MoveSlotsKernel, dim3(blocks), dim3(kThreads), 0, stream, shape, layers, pairs,
                num_copies, num_pairs);
}

}  // namespace kvctl::cuda
