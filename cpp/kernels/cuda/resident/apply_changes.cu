#include <algorithm>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/resident/apply_changes.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kThreads = 128;

/*! \brief A warp for each run, a thread for each token's positions. */
__global__ void ApplyChangesKernel(StepChanges changes) {
  const auto thread = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  const auto threads = static_cast<int32_t>(gridDim.x * blockDim.x);
  for (int32_t run = thread / 32; run < changes.num_runs; run += threads / 32) {
    const ChangedRun from = changes.runs[run];
    const int32_t count = changes.runs[run + 1].first - from.first;
    for (int32_t i = thread % 32; i < count; i += 32) {
      changes.words[from.at + i] = changes.values[from.first + i];
    }
  }
  for (int32_t i = thread; i < changes.num_positions; i += threads) {
    changes.positions_copy[i] = changes.positions[i];
    if (changes.sink_positions != nullptr) {
      changes.sink_positions_copy[i] = changes.sink_positions[i];
    }
  }
}

}  // namespace

cudaError_t PrepareChanges() { return Prepare(ApplyChangesKernel, kThreads, 0, nullptr); }

cudaError_t ApplyChanges(const StepChanges& changes, cudaStream_t stream) {
  constexpr int64_t kMostBlocks = 256;
  const int64_t threads =
      std::max<int64_t>({int64_t{32} * changes.num_runs, changes.num_positions, 1});
  const auto blocks =
      static_cast<unsigned>(std::min(kMostBlocks, (threads + kThreads - 1) / kThreads));
  return Launch(ApplyChangesKernel, dim3(blocks), dim3(kThreads), 0, stream, changes);
}

}  // namespace kvctl::cuda
