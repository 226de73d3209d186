#include "kernels/cuda/kv_copy.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kThreads = 128;

/*! \brief Element offset of K (part 0) or V (part 1) of one head in a slot. */
__device__ int64_t SlotOffset(const PageGeometry& geometry, int32_t slot, int32_t part,
                              int32_t head) {
  const int64_t page = slot / geometry.page_size;
  return (((page * 2 + part) * geometry.num_kv_heads + head) * geometry.page_size +
          slot % geometry.page_size) *
         geometry.head_dim;
}

/*! \brief One block per row; a thread copies elements of K and of V. */
template <typename Element>
__global__ void WriteSlotsKernel(PageGeometry geometry, Element* pages, const int32_t* slots,
                                 const Element* k, const Element* v, int64_t row_stride) {
  const int64_t row = blockIdx.x;
  const int32_t width = geometry.num_kv_heads * geometry.head_dim;
  for (int32_t i = threadIdx.x; i < width; i += blockDim.x) {
    const int32_t head = i / geometry.head_dim, d = i % geometry.head_dim;
    pages[SlotOffset(geometry, slots[row], 0, head) + d] = k[row * row_stride + i];
    pages[SlotOffset(geometry, slots[row], 1, head) + d] = v[row * row_stride + i];
  }
}

/*! \brief Between the pages and scratch; blockIdx = (move, layer). */
template <typename Element, bool kToScratch>
__global__ void StageKernel(PageGeometry geometry, Element* const* layers, const int32_t* slots,
                            Element* scratch) {
  const int32_t width = geometry.num_kv_heads * geometry.head_dim;
  Element* staged =
      scratch + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * 2 * width;
  Element* pages = layers[blockIdx.y];
  for (int32_t i = threadIdx.x; i < 2 * width; i += blockDim.x) {
    const int32_t part = i / width, within = i % width;
    const int64_t at = SlotOffset(geometry, slots[blockIdx.x], part, within / geometry.head_dim) +
                       within % geometry.head_dim;
    if constexpr (kToScratch) {
      staged[i] = pages[at];
    } else {
      pages[at] = staged[i];
    }
  }
}

template <typename Element>
cudaError_t WriteSlotsOf(const PageGeometry& geometry, void* pages, const int32_t* slots,
                         int64_t num_rows, const void* k, const void* v, int64_t row_stride,
                         cudaStream_t stream) {
  WriteSlotsKernel<Element><<<static_cast<unsigned>(num_rows), kThreads, 0, stream>>>(
      geometry, static_cast<Element*>(pages), slots, static_cast<const Element*>(k),
      static_cast<const Element*>(v), row_stride);
  return cudaGetLastError();
}

template <typename Element>
cudaError_t MoveSlotsOf(const PageGeometry& geometry, void* const* layers, int32_t num_layers,
                        const int32_t* sources, const int32_t* targets, int32_t num_moves,
                        void* scratch, cudaStream_t stream) {
  const dim3 grid(num_moves, num_layers);
  auto* const* typed = reinterpret_cast<Element* const*>(layers);
  auto* staged = static_cast<Element*>(scratch);
  StageKernel<Element, true><<<grid, kThreads, 0, stream>>>(geometry, typed, sources, staged);
  StageKernel<Element, false><<<grid, kThreads, 0, stream>>>(geometry, typed, targets, staged);
  return cudaGetLastError();
}

}  // namespace

cudaError_t WriteSlots(const PageGeometry& geometry, void* pages, const int32_t* slots,
                       int64_t num_rows, const void* k, const void* v, int64_t row_stride,
                       cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  return geometry.element_size == 2
             ? WriteSlotsOf<uint16_t>(geometry, pages, slots, num_rows, k, v, row_stride, stream)
             : WriteSlotsOf<uint32_t>(geometry, pages, slots, num_rows, k, v, row_stride, stream);
}

cudaError_t MoveSlots(const PageGeometry& geometry, void* const* layers, int32_t num_layers,
                      const int32_t* sources, const int32_t* targets, int32_t num_moves,
                      void* scratch, cudaStream_t stream) {
  if (num_moves == 0 || num_layers == 0) return cudaSuccess;
  return geometry.element_size == 2 ? MoveSlotsOf<uint16_t>(geometry, layers, num_layers, sources,
                                                            targets, num_moves, scratch, stream)
                                    : MoveSlotsOf<uint32_t>(geometry, layers, num_layers, sources,
                                                            targets, num_moves, scratch, stream);
}

}  // namespace kvctl::cuda
