/*!
 * \file kernels/cuda/device/shared_prefixes.h
 * \brief What several sequences of a step read from the same pages, where reading it once pays.
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_SHARED_PREFIXES_H_
#define KVCTL_KERNELS_CUDA_DEVICE_SHARED_PREFIXES_H_

#include <cstdint>
#include <vector>

#include "core/cache/shared_runs.h"
#include "core/cache/step_plan.h"
#include "core/mask/mask_plan.h"
#include "kernels/cuda/device/work_list.h"

namespace kvctl::cuda {

/*! \brief Tiles that sequences read together, in a layer. */
struct SharedReads {
  std::vector<SharedTiles> tiles;  //!< without spans
  int64_t saved = 0;               //!< tiles that are read less often because of it
};

/*!
 * \brief Finds shared prefixes of a step.
 *
 * Sequences share the tiles of their first pages that all their queries see. Left out: sequences
 * whose queries do not fit one item, since those of each fill items alone; and sequences that have
 * evicted tokens, whose keys may have other positions on the same pages.
 *
 * Sharing pays where it saves a KV head at least kMinSaved tiles, and twice the bytes that its
 * partial results take: two for each query, 16 head_dim bytes to write and read, where a tile has
 * 256 head_dim bytes.
 */
class SharedPrefixes {
 public:
  static constexpr int64_t kMinSaved = 8;

  SharedPrefixes(int32_t num_kv_heads, int32_t group, int32_t page_size)
      : num_kv_heads_(num_kv_heads), group_(group), page_size_(page_size) {}

  /*! \brief For the calls of Find that follow. The step must outlive them. */
  void SetStep(const StepPlan& step);
  /*! \brief \param limits num_blocks is not read. */
  SharedReads Find(const LayerMasks& masks, const WorkLimits& limits);

 private:
  /*! \brief Runs of sequences whose first limits_[s] tiles may be shared. */
  void FindRuns(std::vector<int32_t> limits);
  void AddHead(int32_t kv_head, int32_t item_tokens, SharedReads* reads);

  const int32_t num_kv_heads_, group_, page_size_;
  const StepPlan* step_ = nullptr;
  std::vector<int32_t> limits_;
  std::vector<SharedRun> runs_;  // of limits_
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_SHARED_PREFIXES_H_
