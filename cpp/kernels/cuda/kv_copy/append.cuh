/*!
 * \file kernels/cuda/kv_copy/append.cuh
 * \brief Rotating q and k of a step's new tokens and writing K and V into their slots.
 *
 * Pointers are device pointers; launches go to the given stream and return the launch's error.
 */
#ifndef KVCTL_KERNELS_CUDA_KV_COPY_APPEND_CUH_
#define KVCTL_KERNELS_CUDA_KV_COPY_APPEND_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/device/float8_scales.h"
#include "kernels/cuda/device/plan_layout.h"
#include "kernels/kv_copy.h"
#include "kvctl/dtype.h"

namespace kvctl::cuda {

/*! \brief Rows of heads: row r, head h, element d at data + r * row_stride + h * head_dim + d. */
struct HeadRows {
  void* data;
  DType dtype;
  int64_t row_stride;
};

/*!
 * \brief Writes q, k and v of every new token of a plan to where attention reads them; q a second
 * time where the plan has renumbered sinks.
 *
 * The first rotary_dim elements of each head of q and k are rotated by the plan's rope table in
 * float32, element d with element d + rotary_dim / 2; rotary_dim 0: none. Elements are converted to
 * the pages' type; with kFloat8 they are divided by their scale first.
 */
struct AppendArgs {
  const PlanHeader* plan;
  /*! \brief Of the plan that was launched for. A graph may replay the launch on another plan: then
   * no K and V are written, and misfit and the plan's are set. */
  int32_t num_query_tokens, item_shape;
  HeadRows q, k, v;
  int32_t num_qo_heads;
  HeadRows q_out;  //!< data nullptr: q is read in place
  /*! \brief What q_at_sinks is made of, rotated by the plan's table for sinks, in a step that has
   * renumbered sinks. */
  HeadRows sink_q;
  HeadRows q_at_sinks;  //!< data nullptr: the launch does not fit such steps
  PageShape page;
  void* pages;  //!< of the layer
  Float8Scales float8;
  int32_t rotary_dim;
  int32_t* misfit;  //!< pinned host memory
};

/*! \brief Makes the kernel ready on the current device; before the first launch. */
cudaError_t PrepareAppend();
/*! \param overlaps Whether the device is of 9.0 or later, see LaunchOverlapping. */
cudaError_t Append(const AppendArgs& args, bool overlaps, cudaStream_t stream);

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_KV_COPY_APPEND_CUH_
