#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/attention/attention_tile.cuh"

namespace kvctl::cuda {
namespace {

/*! \brief The kernels of one head_dim and size of elements. */
struct Heads {
  int32_t head_dim;
  size_t shared_bytes[kNumItemShapes];  // the least that a block of each shape can do with
  cudaError_t (*prepare)(DType, size_t, AttentionOccupancy*);
  cudaError_t (*attend)(const AttentionParams&, const AttentionLaunch&, cudaStream_t);
};

template <int kHeadDim>
Heads HeadsOf() {
  return {kHeadDim,
          {SharedBytes<kHeadDim, 1, 2>(2), SharedBytes<kHeadDim, 2, 2>(2),
           SharedBytes<kHeadDim, 4, 2>(2)},
          PrepareHeads<kHeadDim>,
          AttendHeads<kHeadDim>};
}
template <int kHeadDim>
Heads Float8HeadsOf() {
  return {kHeadDim,
          {SharedBytes<kHeadDim, 1, 1>(2), SharedBytes<kHeadDim, 2, 1>(2),
           SharedBytes<kHeadDim, 4, 1>(2)},
          PrepareFloat8<kHeadDim>,
          AttendFloat8<kHeadDim>};
}

/*! \brief The first shape that fits with all larger ones; kNumItemShapes if none does. */
int32_t LeastShape(const Heads& heads, size_t max_shared_bytes) {
  int32_t shape = kNumItemShapes;
  while (shape > 0 && heads.shared_bytes[shape - 1] <= max_shared_bytes) --shape;
  return shape;
}

/*! \brief The kernels for pages of a shape, or nullptr. */
const Heads* Find(const PageShape& page) {
  static const Heads kHeads[] = {HeadsOf<64>(),  HeadsOf<80>(),  HeadsOf<96>(),
                                 HeadsOf<112>(), HeadsOf<128>(), HeadsOf<256>()};
  static const Heads kFloat8Heads[] = {Float8HeadsOf<64>(), Float8HeadsOf<128>()};
  const auto find = [&](const auto& all) -> const Heads* {
    for (const Heads& heads : all) {
      if (heads.head_dim == page.head_dim) return &heads;
    }
    return nullptr;
  };
  if (page.dtype == DType::kFloat8) return find(kFloat8Heads);
  return page.dtype == DType::kFloat32 ? nullptr : find(kHeads);
}

}  // namespace

cudaError_t PrepareAttention(const PageShape& page, size_t max_shared_bytes,
                             AttentionOccupancy* occupancy) {
  const Heads* heads = Find(page);
  *occupancy = {};
  if (heads == nullptr) return PreparePlain(page.dtype, occupancy);
  const int32_t least = LeastShape(*heads, max_shared_bytes);
  if (least == kNumItemShapes) return PreparePlain(page.dtype, occupancy);
  occupancy->least_shape = least;
  return heads->prepare(page.dtype, max_shared_bytes, occupancy);
}

cudaError_t Attention(const AttentionParams& params, const AttentionLaunch& launch,
                      cudaStream_t stream) {
  const Heads* heads = Find(params.page);
  if (heads == nullptr && !launch.plain) return cudaErrorInvalidValue;
  return launch.plain ? AttendPlain(params, launch, stream) : heads->attend(params, launch, stream);
}

}  // namespace kvctl::cuda
