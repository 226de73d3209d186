#include <algorithm>

#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/attention/attention_tile.cuh"

namespace kvctl::cuda {
namespace {

/*! \brief The kernels of one head_dim. */
struct Heads {
  int32_t head_dim;
  size_t shared_bytes;  // the least that a block of each of them can do with
  cudaError_t (*prepare)(DType, size_t, AttentionOccupancy*);
  cudaError_t (*attend)(const AttentionParams&, const AttentionLaunch&, cudaStream_t);
};

template <int kHeadDim>
Heads HeadsOf() {
  constexpr int kBytes = std::max(
      {SharedBytes<kHeadDim, 1>(2), SharedBytes<kHeadDim, 2>(2), SharedBytes<kHeadDim, 4>(2)});
  return {kHeadDim, kBytes, PrepareHeads<kHeadDim>, AttendHeads<kHeadDim>};
}

/*! \brief The kernels for pages of a shape, or nullptr. */
const Heads* Find(const PageShape& page) {
  static const Heads kHeads[] = {HeadsOf<64>(),  HeadsOf<80>(),  HeadsOf<96>(),
                                 HeadsOf<112>(), HeadsOf<128>(), HeadsOf<256>()};
  if (page.dtype != DType::kFloat16 && page.dtype != DType::kBFloat16) return nullptr;
  for (const Heads& heads : kHeads) {
    if (heads.head_dim == page.head_dim) return &heads;
  }
  return nullptr;
}

}  // namespace

cudaError_t PrepareAttention(const PageShape& page, size_t max_shared_bytes,
                             AttentionOccupancy* occupancy) {
  const Heads* heads = Find(page);
  *occupancy = {};
  return heads != nullptr && heads->shared_bytes <= max_shared_bytes
             ? heads->prepare(page.dtype, max_shared_bytes, occupancy)
             : PreparePlain(page.dtype, occupancy);
}

cudaError_t Attention(const AttentionParams& params, const AttentionLaunch& launch,
                      cudaStream_t stream) {
  const Heads* heads = Find(params.page);
  if (heads == nullptr && !launch.plain) return cudaErrorInvalidValue;
  return launch.plain ? AttendPlain(params, launch, stream) : heads->attend(params, launch, stream);
}

}  // namespace kvctl::cuda
