/*!
 * \file kernels/cuda/verify/verify.cuh
 * \brief Acceptance rules on a device: the decisions of core/rules, bit for bit.
 *
 * Two kernels: one reads every row once, with the vocabulary split over blocks; one walks each
 * sequence's tree with a block of threads, and rereads only the rows whose residuals it needs. One
 * more draws by Gumbel noise after every node at once, where the rule does so. Two more prepare
 * logits that requests process otherwise than by a temperature.
 * Pointers are device pointers.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_VERIFY_CUH_
#define KVCTL_KERNELS_CUDA_VERIFY_VERIFY_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/verify/verify_plan.h"

namespace kvctl::cuda {

/*! \brief The most threads of a walk: their registers fill a multiprocessor. */
constexpr int32_t kMaxWalkThreads = 512;

struct VerifyParams {
  const VerifyHeader* plan;
  int32_t num_sequences, num_jobs, num_processed, vocab_size;
  Walk walk;
  BlockSum* sums;           //!< [num_jobs, ceil(vocab_size / kVocabBlock)]
  DistributionStep* steps;  //!< [nodes]
  LevelState* levels;       //!< [nodes]
  NodeFacts* facts;         //!< [nodes]
  VerifyOutcome* outcomes;  //!< [num_sequences]; kernels only write them, as they do log_probs
  double* log_probs;   //!< [nodes] of the emitted tokens, before stop tokens cut them; or nullptr
  float* scratch;      //!< [num_processed, vocab_size]
  TokenScore* scores;  //!< [nodes, ceil(vocab_size / kVocabBlock)] where there is noise
  int32_t num_nodes;
  /*! \brief Whether kernels of a call may come onto the device while the one before them in the
   * call runs. The first waits for the copy of the plan. */
  bool overlaps;
};

/*! \brief Fills params.scratch: logits after bias, penalties and bitmask. */
cudaError_t ProcessRows(const VerifyParams& params, cudaStream_t stream);
/*! \brief Applies top-k, top-p and min-p to params.scratch, and to the sums of those rows. */
cudaError_t CutRows(const VerifyParams& params, cudaStream_t stream);
/*! \brief Fills params.sums. */
cudaError_t SumRows(const VerifyParams& params, cudaStream_t stream);
/*! \brief Fills params.scores: the least noise / weight of each block after every node whose token
 * is drawn by Gumbel noise. */
cudaError_t ScoreNoise(const VerifyParams& params, cudaStream_t stream);
/*! \brief Fills params.outcomes and log_probs. \param num_threads A power of two from 64 to
 * kMaxWalkThreads. */
cudaError_t WalkTrees(const VerifyParams& params, int32_t num_threads, cudaStream_t stream);

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_VERIFY_CUH_
