/*!
 * \file kernels/cuda/resident/apply_changes.cuh
 * \brief The kernel that a step begins with: it changes what the device keeps from step to step.
 *
 * Pointers are device pointers; the launch goes to the given stream and returns its error.
 */
#ifndef KVCTL_KERNELS_CUDA_RESIDENT_APPLY_CHANGES_CUH_
#define KVCTL_KERNELS_CUDA_RESIDENT_APPLY_CHANGES_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/device/resident_words.h"

namespace kvctl::cuda {

/*! \brief Changes of resident words, and positions that the step's caller reads. */
struct StepChanges {
  int32_t* words;
  const ChangedRun* runs;  //!< [num_runs + 1]
  const int32_t* values;
  int32_t num_runs;
  int32_t num_positions;
  const int32_t* positions;       //!< [num_positions]
  int32_t* positions_copy;        //!< [num_positions]
  const int32_t* sink_positions;  //!< [num_positions], or nullptr
  int32_t* sink_positions_copy;   //!< [num_positions], or nullptr
};

/*! \brief Makes the kernel ready on the current device; before the first launch. */
cudaError_t PrepareChanges();
cudaError_t ApplyChanges(const StepChanges& changes, cudaStream_t stream);

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_RESIDENT_APPLY_CHANGES_CUH_
