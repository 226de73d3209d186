/*!
 * \file kernels/cuda/attention/attention_kernel.cuh
 * \brief The attention kernels of one head_dim, and their launches.
 */
#ifndef KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_KERNEL_CUH_
#define KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_KERNEL_CUH_

#include "kernels/cuda/attention/attention_block.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace kvctl::cuda {

/*! \brief How many blocks of a kernel ptxas makes room for on a multiprocessor; 0: as many as it
 * likes. With head_dim 112 that would be one more than fit shared memory, and registers spilled. */
template <int kHeadDim, int kQueryWarps>
constexpr int kLeastBlocks = kHeadDim != 112    ? 0
                             : kQueryWarps == 1 ? 3
                                                : 2;

template <typename T, int kHeadDim, int kQueryWarps, bool kShaped>
__global__ void __launch_bounds__(kThreads, (kLeastBlocks<kHeadDim, kQueryWarps>))
    AttentionKernel(AttentionParams params) {
  KVCTL_DYNAMIC_SHARED(shared);
  if (params.plan->misfit != 0) return;
  const PlanClass work = ClassOf(params.plan, params.layer);
  const WorkItem* items = PlanPart<WorkItem>(params.plan, params.plan->items) + work.first_item;
  AttentionBlock<T, kHeadDim, kQueryWarps, kShaped> block(params, shared);
  const auto* range = PlanPart<int32_t>(params.plan, params.plan->ranges) + work.first_range;
  const int32_t end = range[blockIdx.x + 1];
  for (int32_t i = range[blockIdx.x]; i < end; ++i) block.Run(items[i]);
}

template <typename T, int kHeadDim, int kQueryWarps>
cudaError_t LaunchAttention(const AttentionParams& params, int32_t num_blocks,
                            cudaStream_t stream) {
  using S = TileShape<kHeadDim, kQueryWarps>;
  static_assert(S::kKeyWarps * S::kQueries * S::kSumStride * 4 <= 2 * S::kStageBytes,
                "results fit where K and V were");
  const bool shaped = params.soft_cap > 0 || params.alibi_slopes != nullptr;
  return Launch(shaped ? AttentionKernel<T, kHeadDim, kQueryWarps, true>
                       : AttentionKernel<T, kHeadDim, kQueryWarps, false>,
                dim3(static_cast<unsigned>(num_blocks)), dim3(kThreads), S::kSharedBytes, stream,
                params);
}

/*! \brief \param blocks out, of the kernel that needs more registers. */
template <typename T, int kHeadDim, int kQueryWarps>
cudaError_t PrepareKernels(int* blocks) {
  constexpr int kBytes = TileShape<kHeadDim, kQueryWarps>::kSharedBytes;
  int shaped = 0;
  cudaError_t error =
      Prepare(AttentionKernel<T, kHeadDim, kQueryWarps, true>, kThreads, kBytes, &shaped);
  if (error != cudaSuccess) return error;
  error = Prepare(AttentionKernel<T, kHeadDim, kQueryWarps, false>, kThreads, kBytes, blocks);
  if (shaped < *blocks) *blocks = shaped;  // the grid is the same for both
  return error;
}

template <typename T, int kHeadDim>
cudaError_t PrepareType(AttentionOccupancy* occupancy) {
  const cudaError_t error = PrepareKernels<T, kHeadDim, 4>(&occupancy->many);
  return error == cudaSuccess ? PrepareKernels<T, kHeadDim, 1>(&occupancy->few) : error;
}

template <int kHeadDim>
cudaError_t PrepareHeads(DType dtype, AttentionOccupancy* occupancy) {
  return dtype == DType::kFloat16 ? PrepareType<Half, kHeadDim>(occupancy)
                                  : PrepareType<Bfloat, kHeadDim>(occupancy);
}

template <int kHeadDim>
cudaError_t AttendHeads(const AttentionParams& params, const AttentionLaunch& launch,
                        cudaStream_t stream) {
  const bool half = params.page.dtype == DType::kFloat16;
  if (launch.few_queries) {
    return half ? LaunchAttention<Half, kHeadDim, 1>(params, launch.num_blocks, stream)
                : LaunchAttention<Bfloat, kHeadDim, 1>(params, launch.num_blocks, stream);
  }
  return half ? LaunchAttention<Half, kHeadDim, 4>(params, launch.num_blocks, stream)
              : LaunchAttention<Bfloat, kHeadDim, 4>(params, launch.num_blocks, stream);
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_KERNEL_CUH_
