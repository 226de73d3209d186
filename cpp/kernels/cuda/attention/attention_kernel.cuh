/*!
 * \file kernels/cuda/attention/attention_kernel.cuh
 * \brief The attention kernels of one head_dim, and their launches.
 */
#ifndef KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_KERNEL_CUH_
#define KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_KERNEL_CUH_

#include <algorithm>

#include "kernels/cuda/attention/attention_block.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace kvctl::cuda {

/*! \brief How many blocks of a kernel ptxas makes room for on a multiprocessor; 0: as many as it
 * likes, which for some is more than fit shared memory, and registers are spilled. Of 12.x no more
 * than two fit. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
template <typename T, int kHeadDim, int kQueryWarps, bool kShaped>
constexpr int kLeastBlocks = 2;
#else
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kOf8 = true;
#else
constexpr bool kOf8 = false;
#endif
template <typename T, int kHeadDim, int kQueryWarps, bool kShaped>
constexpr int kLeastBlocks =
    sizeof(T) == 1     ? (kQueryWarps == 4 ? 2 : 3)
    : kQueryWarps == 4 ? (kHeadDim < 128 && kHeadDim != 112 ? 3
                          : kHeadDim != 128                 ? 2
                          : kShaped                         ? 3
                                                            : 0)
    : kQueryWarps == 2 && kShaped && (kHeadDim == 80 || kHeadDim == 96)                       ? 4
    : kHeadDim == 112 || (kHeadDim == 80 && kShaped) || (kHeadDim == 96 && (kShaped || kOf8)) ? 3
                                                                                              : 0;
#endif

/*! \brief The i-th item of this block's range, or nullptr. Found again for each item, since what it
 * is found with would take registers from the loop over keys. */
__device__ inline const WorkItem* ItemOf(const PlanHeader* plan, int32_t layer, int32_t i) {
  const PlanClass work = ClassOf(plan, layer);
  const auto* range = PlanPart<int32_t>(plan, plan->ranges) + work.first_range + blockIdx.x;
  const int32_t item = range[0] + i;
  return item < range[1] ? PlanPart<WorkItem>(plan, plan->items) + work.first_item + item : nullptr;
}

/*! \brief Items of 16 kQueryWarps queries. In a step with larger and smaller ones, the small get
 * warps that share their keys instead of warps without queries. */
template <typename T, int kHeadDim, int kQueryWarps, bool kShaped>
__global__ void __launch_bounds__(kThreads, (kLeastBlocks<T, kHeadDim, kQueryWarps, kShaped>))
    AttentionKernel(AttentionParams params, int32_t num_stages) {
  KVCTL_DYNAMIC_SHARED(shared);
  WaitForPrevious();
  LetNextCome();
  if (params.plan->misfit != 0) return;
  for (int32_t i = 0; const WorkItem* next = ItemOf(params.plan, params.layer, i); ++i) {
    const WorkItem& item = *next;
    if (kQueryWarps == 4 && (item.token_end - item.token_begin) * params.group <= 32) {
      AttentionBlock<T, kHeadDim, 2, kShaped>(params, kHeadDim > 128 ? 2 : num_stages, shared)
          .Run(item);
    } else {
      AttentionBlock<T, kHeadDim, kQueryWarps, kShaped>(params, num_stages, shared).Run(item);
    }
  }
}

template <typename T, int kHeadDim, int kQueryWarps>
cudaError_t LaunchAttention(const AttentionParams& params, const AttentionLaunch& launch,
                            cudaStream_t stream) {
  using S = TileShape<kHeadDim, kQueryWarps, sizeof(T)>;
  static_assert(
      S::kKeyWarps == 1 || S::kKeyWarps * S::kQueries * S::kSumStride * 4 <= 2 * S::kStageBytes,
      "results fit where K and V were");
  const bool shaped =
      params.soft_cap > 0 || params.alibi_slopes != nullptr || params.head_pages != nullptr;
  const int32_t stages = launch.num_stages;
  return LaunchOverlapping(launch.overlaps,
                           shaped ? AttentionKernel<T, kHeadDim, kQueryWarps, true>
                                  : AttentionKernel<T, kHeadDim, kQueryWarps, false>,
                           dim3(static_cast<unsigned>(launch.num_blocks)), dim3(kThreads),
                           SharedBytes<kHeadDim, kQueryWarps, sizeof(T)>(stages), stream, params,
                           stages);
}

/*!
 * \brief Both kernels of a shape.
 * \param blocks out, of the plain one that run at once with so many stages. The grid is the same
 * for the other, whose last blocks may have to wait.
 */
template <typename T, int kHeadDim, int kQueryWarps>
cudaError_t PrepareKernels(int stages, int* blocks) {
  const size_t bytes = SharedBytes<kHeadDim, kQueryWarps, sizeof(T)>(stages);
  const cudaError_t error =
      Prepare(AttentionKernel<T, kHeadDim, kQueryWarps, true>, kThreads, bytes, nullptr);
  if (error != cudaSuccess) return error;
  return Prepare(AttentionKernel<T, kHeadDim, kQueryWarps, false>, kThreads, bytes, blocks);
}

/*! \brief Takes three stages where two blocks still run at once, or as many as with two stages. */
template <typename T, int kHeadDim, int kQueryWarps>
cudaError_t PrepareShape(size_t max_shared_bytes, ShapeOccupancy* occupancy) {
  *occupancy = {0, 2};
  cudaError_t error = PrepareKernels<T, kHeadDim, kQueryWarps>(2, &occupancy->blocks);
  if (error != cudaSuccess || SharedBytes<kHeadDim, kQueryWarps, sizeof(T)>(kMaxStages) >
                                  static_cast<int64_t>(max_shared_bytes)) {
    return error;
  }
  int blocks = 0;
  error = PrepareKernels<T, kHeadDim, kQueryWarps>(kMaxStages, &blocks);
  if (blocks >= std::min(2, occupancy->blocks)) *occupancy = {blocks, kMaxStages};
  return error;
}

template <typename T, int kHeadDim>
cudaError_t PrepareType(size_t max_shared_bytes, AttentionOccupancy* occupancy) {
  cudaError_t error = cudaSuccess;
  if (occupancy->least_shape <= 0) {
    error = PrepareShape<T, kHeadDim, 1>(max_shared_bytes, &occupancy->shapes[0]);
  }
  if (error == cudaSuccess && occupancy->least_shape <= 1) {
    error = PrepareShape<T, kHeadDim, 2>(max_shared_bytes, &occupancy->shapes[1]);
  }
  if (error != cudaSuccess) return error;
  return PrepareShape<T, kHeadDim, 4>(max_shared_bytes, &occupancy->shapes[2]);
}

template <int kHeadDim>
cudaError_t PrepareHeads(DType dtype, size_t max_shared_bytes, AttentionOccupancy* occupancy) {
  return dtype == DType::kFloat16 ? PrepareType<Half, kHeadDim>(max_shared_bytes, occupancy)
                                  : PrepareType<Bfloat, kHeadDim>(max_shared_bytes, occupancy);
}

template <typename T, int kHeadDim>
cudaError_t AttendType(const AttentionParams& params, const AttentionLaunch& launch,
                       cudaStream_t stream) {
  switch (launch.item_shape) {
    case 0:
      return LaunchAttention<T, kHeadDim, 1>(params, launch, stream);
    case 1:
      return LaunchAttention<T, kHeadDim, 2>(params, launch, stream);
    default:
      return LaunchAttention<T, kHeadDim, 4>(params, launch, stream);
  }
}

template <int kHeadDim>
cudaError_t AttendHeads(const AttentionParams& params, const AttentionLaunch& launch,
                        cudaStream_t stream) {
  return params.page.dtype == DType::kFloat16
             ? AttendType<Half, kHeadDim>(params, launch, stream)
             : AttendType<Bfloat, kHeadDim>(params, launch, stream);
}

template <int kHeadDim>
cudaError_t PrepareFloat8(DType, size_t max_shared_bytes, AttentionOccupancy* occupancy) {
  return PrepareType<Float8, kHeadDim>(max_shared_bytes, occupancy);
}

template <int kHeadDim>
cudaError_t AttendFloat8(const AttentionParams& params, const AttentionLaunch& launch,
                         cudaStream_t stream) {
  return AttendType<Float8, kHeadDim>(params, launch, stream);
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_KERNEL_CUH_
