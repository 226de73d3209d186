/*!
 * \file kernels/cuda/device/device_plan.h
 * \brief A step as CUDA kernels read it: one arena, uploaded in one copy.
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_DEVICE_PLAN_H_
#define KVCTL_KERNELS_CUDA_DEVICE_DEVICE_PLAN_H_

#include <cstdint>
#include <vector>

#include "core/cache/step_plan.h"
#include "core/mask/mask_plan.h"
#include "kernels/cuda/device/plan_layout.h"
#include "kernels/cuda/device/resident_words.h"
#include "kernels/cuda/device/shared_prefixes.h"
#include "kernels/cuda/device/work_list.h"
#include "kernels/cuda_plugin.h"

namespace kvctl::cuda {

/*! \brief Sizes that a plan depends on, beside the step. */
struct PlanShape {
  int32_t num_layers, num_kv_heads, group, page_size;
  /*! \brief Blocks that run at once, by the shape of items; work is split until all have some. */
  int32_t num_blocks[kNumItemShapes];
  int32_t max_partial_queries;  //!< capacity for partial results
  int32_t rotary_dim;           //!< of the rope table, 0 without one
  bool shares = true;           //!< whether prefixes that sequences share are read once
  int32_t least_shape = 0;      //!< of items; the device has no room for kernels of smaller ones
};

/*! \brief Where the parts of plans lie that stay on the device from step to step. */
struct ResidentRows {
  ResidentWords* words;
  int32_t offset;          //!< of the words, in bytes from the header
  const int64_t* seq_ids;  //!< [sequences]
};

/*! \brief Builds arenas. Storage is reused from step to step. */
class DevicePlanBuilder {
 public:
  explicit DevicePlanBuilder(const PlanShape& shape)
      : shape_(shape), shared_(shape.num_kv_heads, shape.group, shape.page_size) {}

  /*!
   * \brief Lays out a step.
   * \param rope [num_query_tokens, rotary_dim], or nullptr.
   * \param sinks nullptr if no query sees renumbered sinks.
   * \param shares Whether prefixes may be read once, if the shape says so too.
   * \param rows nullptr: all parts lie in the arena. Otherwise page tables, positions of committed
   * tokens and work items are rows of its words; if those overflow, the plan is of no use.
   * \throws kValue if the plan is larger than 2 GiB.
   */
  void Build(const StepPlan& step, const MaskTable& masks, const float* rope,
             const CudaSinks* sinks = nullptr, bool shares = true,
             const ResidentRows* rows = nullptr);

  const std::vector<uint64_t>& arena() const { return arena_; }
  int64_t num_bytes() const { return static_cast<int64_t>(arena_.size() * sizeof(uint64_t)); }
  const PlanHeader& header() const { return *reinterpret_cast<const PlanHeader*>(arena_.data()); }
  /*! \brief The class of a layer's masks. */
  int32_t layer_class(int32_t layer) const { return layer_classes_[layer]; }
  int32_t item_shape() const { return item_shape_; }
  int32_t num_blocks() const { return shape_.num_blocks[item_shape_]; }
  int32_t num_items() const { return static_cast<int32_t>(work_.items().size()); }
  int32_t num_rows() const { return static_cast<int32_t>(work_.rows().size()); }
  int32_t num_merges() const { return static_cast<int32_t>(work_.merges().size()); }
  const PlanShape& shape() const { return shape_; }

 private:
  /*! \brief The masks of some layers; `sinks` has no plans if no query sees renumbered sinks. */
  struct ClassMasks {
    LayerMasks masks, sinks;
    int32_t num_layers;
  };

  WorkLimits Limits(int32_t item_shape) const;
  /*! \brief Finds the classes of the layers' masks. */
  std::vector<ClassMasks> Classify(const MaskTable& masks, const CudaSinks* sinks);
  /*! \brief The least shape from the device's least on that every sequence's queries fit, or a
   * larger one, in which more sequences read what they share together, if that saves an eighth of
   * the tiles. */
  int32_t ChooseShape(const StepPlan& step, const std::vector<ClassMasks>& classes);
  void AddClass(const StepPlan& step, const ClassMasks& of);
  /*! \brief Finds the tiles that sequences read together, and notes them in the blocks. */
  std::vector<SharedTiles> ShareTiles(const LayerMasks& masks, std::vector<QueryBlock>* blocks);
  BlockSpans AddSpans(const MaskPlan& plan, int32_t block);
  template <typename T>
  int32_t Append(const T* values, int64_t count);
  /*! \brief A part that may be a row of resident words. Returns its offset from the header. */
  template <typename T>
  int32_t Keep(RowKind kind, int64_t id, const T* values, int64_t count);
  int32_t AppendSequences(const StepPlan& step);

  PlanShape shape_;
  int32_t item_shape_ = 0;
  std::vector<uint64_t> arena_;
  std::vector<int32_t> layer_classes_;
  std::vector<PlanSpan> spans_;
  std::vector<uint64_t> words_;
  std::vector<PlanClass> classes_;
  WorkList work_;
  bool shares_ = false;
  const ResidentRows* rows_ = nullptr;  // of the step that is built
  SharedPrefixes shared_;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_DEVICE_PLAN_H_
