#include <algorithm>

#include "kernels/cuda/device/elements.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/kv_copy/slots.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kThreads = 128;

/*! \brief A thread rotates one pair of elements of a key. */
__global__ void RotateSlotsKernel(PageShape shape, void* const* layers, int32_t num_layers,
                                  const int32_t* slots, const float* table, int32_t num_slots,
                                  int32_t rotary_dim, Float8Scales float8) {
  const int32_t half = rotary_dim / 2;
  const int64_t pairs = int64_t{num_layers} * shape.num_kv_heads * num_slots * half;
  const auto step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (auto i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < pairs; i += step) {
    const auto pair = static_cast<int32_t>(i % half);
    const auto row = static_cast<int32_t>(i / half % num_slots);
    const auto head = static_cast<int32_t>(i / half / num_slots % shape.num_kv_heads);
    void* pages = layers[i / half / num_slots / shape.num_kv_heads];
    const int64_t first = SlotOffset(shape, slots[row], 0, head) + pair, second = first + half;
    const float* cosines = table + static_cast<int64_t>(row) * rotary_dim;
    const float c = cosines[pair], s = cosines[pair + half];
    const float a = LoadFromPages(pages, shape.dtype, first);  // of one head, so of one scale
    const float b = LoadFromPages(pages, shape.dtype, second);
    CountSaturated(float8, StoreInPages(a * c - b * s, pages, shape.dtype, first) +
                               StoreInPages(b * c + a * s, pages, shape.dtype, second));
  }
}

}  // namespace

cudaError_t RotateSlots(const PageShape& shape, void* const* layers, int32_t num_layers,
                        const int32_t* slots, const float* table, int32_t num_slots,
                        int32_t rotary_dim, unsigned long long* num_saturated,
                        cudaStream_t stream) {
  constexpr int64_t kMostBlocks = 4096;
  const int64_t pairs = int64_t{num_layers} * shape.num_kv_heads * num_slots * (rotary_dim / 2);
  if (pairs == 0) return cudaSuccess;
  const int64_t blocks = std::min(kMostBlocks, (pairs + kThreads - 1) / kThreads);
  return Launch(RotateSlotsKernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
                shape, layers, num_layers, slots, table, num_slots, rotary_dim,
                Float8Scales{nullptr, num_saturated});
}

}  // namespace kvctl::cuda
