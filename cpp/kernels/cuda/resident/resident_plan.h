/*!
 * \file kernels/cuda/resident/resident_plan.h
 * \brief The plan of the step in flight on the device, of which each step sends what has changed.
 */
#ifndef KVCTL_KERNELS_CUDA_RESIDENT_RESIDENT_PLAN_H_
#define KVCTL_KERNELS_CUDA_RESIDENT_RESIDENT_PLAN_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device/device_plan.h"
#include "kernels/cuda/device/memory.h"
#include "kernels/cuda/device/resident_words.h"
#include "kernels/cuda_plugin.h"

namespace kvctl::cuda {

/*!
 * \brief One allocation on the device: the arena that every step sends anew, then the words that
 * stay from step to step.
 *
 * Page tables, positions and work items lie in the words. Kernels find them by offsets from the
 * arena's header, so that recorded launches, which know its address alone, read those of the
 * present step. The allocation moves only where a step does not fit it.
 */
class ResidentPlan {
 public:
  /*! \brief On the current device. Waits for it.
   * \param arena_bytes, num_words What most steps need. */
  ResidentPlan(const PlanShape& shape, size_t arena_bytes, int64_t num_words);

  /*!
   * \brief Lays out a step on the host.
   * \param fixed Whether recorded graphs read the plan where it is.
   * \throws Error kRuntime if the plan would have to move and is fixed, kValue if it is larger than
   * 2 GiB. The device still has the plan and the words of the step before, unless they were moved:
   * then it has none, and the words are 0.
   */
  void LayOut(const CudaStep& step, bool fixed, cudaStream_t stream);
  /*! \brief Sends the step that was laid out, in one copy and a kernel.
   * \throws Error kRuntime; the words are then those of the step before, or of this. */
  void Send(const CudaStep& step, cudaStream_t stream);

  const DevicePlanBuilder& plan() const { return plan_; }
  /*! \brief On the device. */
  const PlanHeader* header() const { return memory_.As<PlanHeader>(); }
  /*! \brief CudaCache::CompareUploads. */
  UploadState Compare(const StepPlan* step, cudaStream_t stream) const;

 private:
  int32_t* device_words() const {
    return reinterpret_cast<int32_t*>(memory_.As<char>() + arena_bytes_);
  }
  void Build(const CudaStep& step);
  bool Fits() const { return !words_.overflowed() && plan_.num_bytes() <= arena_bytes_; }
  /*! \brief Makes room for the step that was laid out. Loses what the device holds. */
  void Move(cudaStream_t stream);
  void ClearWords(cudaStream_t stream);

  DevicePlanBuilder plan_;
  ResidentWords words_;
  Upload memory_, large_changes_;  // the second where changes do not fit behind the arena
  int64_t arena_bytes_;
  bool cleared_ = false;  // the words on the device are those of words_
  int64_t num_bytes_ = 0;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_RESIDENT_RESIDENT_PLAN_H_
