/*!
 * \file runtime/cache/step/forward_step.h
 * \brief The step in flight: its requests, its effective masks, and its layers.
 */
#ifndef KVCTL_RUNTIME_CACHE_STEP_FORWARD_STEP_H_
#define KVCTL_RUNTIME_CACHE_STEP_FORWARD_STEP_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "core/cache/sequence_table.h"
#include "core/mask/mask_plan.h"
#include "kvctl/paged_kv_cache.h"

namespace kvctl {

/*! \brief Which keys of its sequence a query looks at. */
enum class StepKeys { kAll, kPast, kNew };

/*! \brief The masks of a step, restricted to some of the keys. */
struct StepMasks {
  MaskTable masks;
  MaskTable sinks;       //!< what queries see of renumbered sinks; only if the step has any
  bool lowered = false;  //!< for the step in flight
};

/*!
 * \brief One forward step of a cache's sequences.
 *
 * The sequence table reserves keys and plans the step. This object adds the masks, with the
 * windows of sequences and layers, and records which layers have K and V of the new tokens.
 */
class ForwardStep {
 public:
  using Shape = tvm::ffi::Shape;

  /*! \param config, table Must outlive this object. */
  ForwardStep(const PagedKVCacheConfig& config, SequenceTable* table)
      : config_(config), table_(*table) {}

  /*! \brief Begins a step as TVM's interface describes it, under causal masks or token trees. */
  void Begin(const Shape& seq_ids, const Shape& append_lengths,
             const tvm::ffi::Optional<Shape>& parents, CopyPlan* copies);
  /*! \brief Begins a step in which every sequence may have a mask and positions of its own. */
  void Begin(const std::vector<StepRequest>& requests, CopyPlan* copies);
  /*!
   * \brief Ends the step.
   * \throws Error kRuntime if it would commit tokens that lack K and V in some layer, unless the
   * step began through TVM's interface, where steps may leave layers out.
   */
  void End();

  const StepPlan& plan() const { return table_.plan(); }
  int64_t sequence_id(size_t index) const { return requests_[index].seq_id; }
  /*! \brief The sum of the sequences' numbers of keys. */
  int64_t num_keys() const;
  /*!
   * \brief A layer of an attention call, counted from the cache's first.
   * \throws Error kRuntime unless a step is in flight, kIndex for a layer of another cache.
   */
  int32_t AttendedLayer(int64_t layer_id) const;

  /*! \brief The step's masks, restricted to some of the keys. */
  StepMasks& MasksOf(StepKeys keys);
  /*! \brief Whether some queries see sinks that their window renumbers. */
  bool has_sinks() const { return !sink_masks_.empty(); }
  /*! \brief [queries] positions from which they look at renumbered sinks; only if has_sinks(). */
  const std::vector<int32_t>& sink_positions() const { return sink_positions_; }

  /*! \brief K and V of the new tokens are in the layer's pages. */
  void MarkWritten(int32_t layer) { written_[layer] = true; }
  /*! \brief The model attends in parts, so some layers may share the K and V of others. */
  void MarkInParts() { in_parts_ = true; }
  /*!
   * \brief Whether attention to the cache includes the layer's new tokens: TVM writes those of a
   * decode step before it attends, and those of a chunk afterwards.
   */
  bool CacheHoldsNewTokens(int32_t layer) const;

 private:
  /*! \brief Begins the step that requests_ describes. */
  void Begin(CopyPlan* copies, bool by_tvm);
  /*! \brief Combines the requests' masks with the windows of sequences and layers. */
  void SetMasks();
  /*! \brief Moves what one sequence's mask shows of renumbered sinks to sink_masks_. */
  void SplitOffSinks(size_t index, Mask* mask);
  void SetSinkPositions();
  /*! \brief How many layers the rows ran before this step: 0 unless all of them resume. */
  int64_t LayersResumed() const;
  /*! \brief The first layer without K and V of the new tokens where others have them and the step
   * must write all, or -1. */
  int64_t FirstUnwrittenLayer() const;

  const PagedKVCacheConfig& config_;
  SequenceTable& table_;
  std::vector<StepRequest> requests_;       // tree masks resolved to parents
  std::vector<int32_t> parents_;            // what requests_ points to while a step begins
  std::vector<std::optional<Mask>> masks_;  // [sequences] nullopt: causal
  bool all_causal_ = true;                  // all masks_ are nullopt
  std::vector<Mask> sink_masks_;            // [sequences], or empty
  std::vector<int32_t> sink_positions_;
  StepMasks all_, past_, new_;
  std::vector<const Mask*> mask_pointers_;
  std::vector<bool> written_;  // [num_layers]
  bool in_parts_ = false;
  bool by_tvm_ = false;  // began through TVM's interface
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_STEP_FORWARD_STEP_H_
