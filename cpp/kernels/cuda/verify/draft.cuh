/*!
 * \file kernels/cuda/verify/draft.cuh
 * \brief Drawing drafted tokens on a device: core/verify/draft.h, bit for bit. Pointers are device
 * pointers.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_DRAFT_CUH_
#define KVCTL_KERNELS_CUDA_VERIFY_DRAFT_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/verify/verify.cuh"
#include "kvctl/verify.h"

namespace kvctl::cuda {

/*! \brief DraftItem, for its tokens and distribution. */
struct DraftTarget {
  void* probs;  //!< out [vocab_size]
  uint32_t first_node, depth;
};

/*! \brief Rows are sequences of one node. */
struct DraftParams {
  VerifyParams rows;
  const DraftTarget* targets;  //!< [num_sequences]
  Drawn how;
  int32_t num_tokens;
  DType probs_type;  //!< kFloat32 or kFloat64
  int32_t* tokens;   //!< out [num_sequences, num_tokens], -1 after the end of the support
};

/*! \brief Fills params.tokens, the distributions, and params.rows.outcomes, of which only
 * `irregular` is meant. After SumRows and CutRows. \param num_threads as for WalkTrees. */
cudaError_t DraftRows(const DraftParams& params, int32_t num_threads, cudaStream_t stream);

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_DRAFT_CUH_
