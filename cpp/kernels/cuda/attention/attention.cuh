/*!
 * \file kernels/cuda/attention/attention.cuh
 * \brief Masked attention of a step's new tokens over a paged cache on a device; the counterpart of
 * kernels/attention.h.
 *
 * Pointers are device pointers; launches go to the given stream and return the launch's error.
 */
#ifndef KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_CUH_
#define KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_CUH_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device/float8_scales.h"
#include "kernels/cuda/device/plan_layout.h"
#include "kernels/cuda/kv_copy/append.cuh"
#include "kvctl/dtype.h"

namespace kvctl::cuda {

/*! \brief Results of work items that cover a part of their keys; shared by all layers. */
struct Partials {
  float* sums;    //!< [max_partial_queries, head_dim]: sum of p v
  float2* scale;  //!< [max_partial_queries]: largest score times log2 e, sum of p
};

/*! \brief AttentionArgs for the kernels. q, K and V have the pages' type; with pages of kFloat8 q
 * has kFloat16. */
struct AttentionParams {
  const PlanHeader* plan;
  int32_t layer;
  const void* q;
  int64_t q_row_stride;
  /*! \brief q as it looks at renumbered sinks, with q's stride; read where the plan has such items.
   */
  const void* q_at_sinks;
  int32_t num_qo_heads, group;
  PageShape page;
  const void* pages;  //!< of the layer
  HeadRows out;
  float sm_scale;
  float soft_cap;             //!< 0: none
  const float* alibi_slopes;  //!< or nullptr
  const float* sinks;         //!< or nullptr
  float* lse;                 //!< or nullptr
  Partials partials;
  /*! \brief [sequences, num_kv_heads], then page tables: where the table of each begins, in
   * elements; or nullptr. Keys of pages below 0 are hidden. */
  const int32_t* head_pages;
  Float8Scales float8;
};

/*! \brief What SumWeights sums: AttentionMass. */
struct WeightSums {
  float* sums;  //!< [keys of all sequences, num_heads]
  int32_t num_heads, last_queries;
};

/*! \brief The launch parameters: the grids do not depend on the step. */
struct AttentionLaunch {
  bool plain;          //!< AttentionOccupancy::plain
  int32_t item_shape;  //!< DevicePlanBuilder::item_shape
  int32_t num_blocks;  //!< DevicePlanBuilder::num_blocks: each has a range of items
  int32_t num_stages;  //!< ShapeOccupancy::stages
  bool overlaps;       //!< whether the device is of 9.0 or later, see LaunchOverlapping
};

/*! \brief How a kernel of attention runs on this device. */
struct ShapeOccupancy {
  int blocks;  //!< on a multiprocessor at once
  int stages;  //!< steps whose K and V a block has in shared memory
};
struct AttentionOccupancy {
  ShapeOccupancy shapes[kNumItemShapes];
  /*! \brief The smaller ones do not fit the shared memory of this device: PlanShape::least_shape.
   */
  int32_t least_shape;
  bool plain;  //!< the kernel without tensor cores, which is slow
};

/*!
 * \brief Makes the kernels of a cache ready on the current device; before the first launch.
 *
 * Those that use tensor cores are for float16 and bfloat16, and a head_dim of 64, 80, 96, 112, 128
 * or 256; with kFloat8 of 64 or 128. Other caches get the plain kernel.
 *
 * \param page Any type; head_dim a multiple of 8 in [8, 256].
 * \param max_shared_bytes What a block may have on this device. Where that is too little for a
 * shape of items, smaller items take the next one; where it is for all, the cache gets the plain
 * kernel.
 */
cudaError_t PrepareAttention(const PageShape& page, size_t max_shared_bytes,
                             AttentionOccupancy* occupancy);

/*! \brief cudaErrorInvalidValue if the launch is not plain where the cache needs that. */
cudaError_t Attention(const AttentionParams& params, const AttentionLaunch& launch,
                      cudaStream_t stream);

/*! \brief The kernels of one head_dim. */
template <int kHeadDim>
cudaError_t AttendHeads(const AttentionParams& params, const AttentionLaunch& launch,
                        cudaStream_t stream);
/*! \brief Of the shapes from occupancy->least_shape on. */
template <int kHeadDim>
cudaError_t PrepareHeads(DType dtype, size_t max_shared_bytes, AttentionOccupancy* occupancy);
/*! \brief The kernels of one head_dim for pages of kFloat8. */
template <int kHeadDim>
cudaError_t AttendFloat8(const AttentionParams& params, const AttentionLaunch& launch,
                         cudaStream_t stream);
template <int kHeadDim>
cudaError_t PrepareFloat8(DType dtype, size_t max_shared_bytes, AttentionOccupancy* occupancy);
/*! \brief Adds the softmax weights of the keys, of params.lse after Attention, to sums. In what
 * order weights are added, and with it their last bits, is not defined. */
cudaError_t SumWeights(const AttentionParams& params, const AttentionLaunch& launch,
                       const WeightSums& sums, cudaStream_t stream);
cudaError_t PrepareWeights(DType dtype);
/*! \brief The plain kernel. */
cudaError_t AttendPlain(const AttentionParams& params, const AttentionLaunch& launch,
                        cudaStream_t stream);
cudaError_t PreparePlain(DType dtype, AttentionOccupancy* occupancy);

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_CUH_
