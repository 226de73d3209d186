#include "kernels/cuda/device/elements.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/kv_copy/slots.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kThreads = 128;

enum class Way { kToSlots, kFromSlots, kPoison };

/*! \brief A block per row. */
__global__ void CopySlotsKernel(PageShape shape, void* pages, const int32_t* slots, KVRows k,
                                KVRows v, Float8Scales float8, Way way) {
  const int64_t row = blockIdx.x;
  const int32_t width = shape.num_kv_heads * shape.head_dim;
  for (int32_t i = threadIdx.x; i < 2 * width; i += blockDim.x) {
    const int32_t part = i / width, within = i % width;
    const KVRows& rows = part == 0 ? k : v;
    const int32_t head = within / shape.head_dim;
    const int64_t slot = SlotOffset(shape, slots[row], part, head) + within % shape.head_dim;
    const int64_t at = row * rows.row_stride + within;
    if (way != Way::kPoison && rows.dtype == DType::kFloat8) {  // as they are
      auto* bytes = static_cast<Float8*>(pages) + slot;
      auto* other = static_cast<Float8*>(rows.data) + at;
      if (way == Way::kToSlots) {
        *bytes = *other;
      } else {
        *other = *bytes;
      }
    } else if (way == Way::kToSlots) {
      const float value = LoadElement(rows.data, rows.dtype, at);
      const float scale = ScaleOf(float8, shape.num_kv_heads, part, head);
      CountSaturated(float8, StoreInPages(value / scale, pages, shape.dtype, slot));
    } else if (way == Way::kFromSlots) {
      const float value = LoadFromPages(pages, shape.dtype, slot);
      StoreElement(value * ScaleOf(float8, shape.num_kv_heads, part, head), rows.data, rows.dtype,
                   at);
    } else if (shape.dtype == DType::kFloat32) {
      static_cast<uint32_t*>(pages)[slot] = 0xFFFFFFFFu;
    } else if (shape.dtype == DType::kFloat8) {
      static_cast<Float8*>(pages)[slot].bits = 0xFFu;
    } else {
      static_cast<uint16_t*>(pages)[slot] = 0xFFFFu;
    }
  }
}

cudaError_t Run(const PageShape& shape, void* pages, const int32_t* slots, int64_t num_rows,
                const KVRows& k, const KVRows& v, const Float8Scales& float8, Way way,
                cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  return Launch(CopySlotsKernel, dim3(static_cast<unsigned>(num_rows)), dim3(kThreads), 0, stream,
                shape, pages, slots, k, v, float8, way);
}

}  // namespace

cudaError_t WriteSlots(const PageShape& shape, void* pages, const int32_t* slots, int64_t num_rows,
                       const KVRows& k, const KVRows& v, const Float8Scales& float8,
                       cudaStream_t stream) {
  return Run(shape, pages, slots, num_rows, k, v, float8, Way::kToSlots, stream);
}

cudaError_t ReadSlots(const PageShape& shape, const void* pages, const int32_t* slots,
                      int64_t num_rows, const KVRows& k, const KVRows& v,
                      const Float8Scales& float8, cudaStream_t stream) {
  return Run(shape, const_cast<void*>(pages), slots, num_rows, k, v, float8, Way::kFromSlots,
             stream);
}

cudaError_t PoisonSlots(const PageShape& shape, void* pages, const int32_t* slots, int64_t num_rows,
                        cudaStream_t stream) {
  const KVRows none{nullptr, DType::kFloat32, 0};
  return Run(shape, pages, slots, num_rows, none, none, {}, Way::kPoison, stream);
}

}  // namespace kvctl::cuda
