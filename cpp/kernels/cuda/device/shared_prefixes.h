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
 * Sharing pays where it saves a KV head at least kMinSaved tiles, and the bytes of the tiles it
 * saves are at least kMinGain times those of the partial results that it adds.
 */
class SharedPrefixes {
 public:
  static constexpr int64_t kMinSaved = 8;
  /*! \brief Partial results cost more than their bytes: fences, and the wait for the last block. */
  static constexpr int64_t kMinGain = 2;
  /*! \brief Results of a query: of the tiles it shares, and of its own. */
  static constexpr int64_t kResults = 2;
  /*! \brief Bytes of each result's elements: a float that is written, and read once. */
  static constexpr int64_t kResultBytes = 2 * sizeof(float);
  /*! \brief Bytes of each element of the heads in a tile: its keys' K and V, of 16 bits. Those of
   * float32 and of 8-bit pages are counted alike, so that a plan does not depend on the type. */
  static constexpr int64_t kTileBytes = 2 * 2 * kTileKeys;

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
