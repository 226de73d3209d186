/*!
 * \file runtime/cache/step/attention_hooks.h
 * \brief The functions that users set to take part in attention: page selector and observer.
 */
#ifndef KVCTL_RUNTIME_CACHE_STEP_ATTENTION_HOOKS_H_
#define KVCTL_RUNTIME_CACHE_STEP_ATTENTION_HOOKS_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "kernels/attention.h"
#include "kernels/kv_copy.h"
#include "kvctl/paged_kv_cache.h"
#include "runtime/cache/step/forward_step.h"

namespace kvctl {

/*! \brief Calls the user's page selector before attention, and the observer after it. */
class AttentionHooks {
 public:
  using Function = tvm::ffi::Function;
  /*! \brief Sets the sums of an AttentionMass to the weights that the step's rows gave to each
   * key. */
  using SumUp = std::function<void(const AttentionMass&)>;

  /*! \param config Must outlive this object. */
  explicit AttentionHooks(const PagedKVCacheConfig& config) : config_(config) {}

  /*! \brief See PagedKVCacheObj::SetPageSelector. */
  void SetPageSelector(tvm::ffi::Optional<Function> select) { select_ = std::move(select); }
  /*! \brief See PagedKVCacheObj::SetObserver. \throws Error kValue for options out of range. */
  void SetObserver(tvm::ffi::Optional<Function> observer, const ObserverOptions& options);
  bool selects() const { return select_.has_value(); }
  bool observes() const { return observer_.has_value(); }

  /*!
   * \brief Asks the page selector.
   * \param layer The layer, counted from the cache's first.
   * \param q (queries, num_qo_heads, head_dim) the step's rotated rows of q, on the cache's device;
   * the selector may keep them.
   * \return [sequences, num_kv_heads] pages of each sequence, -1 for those that were not selected;
   * valid until the next call.
   * \throws Error kValue, kIndex or kType for an answer that does not fit the step.
   */
  const int32_t* const* SelectPages(const StepPlan& plan, int32_t layer,
                                    const tvm::runtime::Tensor& q);
  /*! \brief Calls the observer with the sums of one attention call. */
  void Observe(const ForwardStep& step, int64_t layer_id, const SumUp& sum_up);

 private:
  /*! \brief A sequence's page table, with -1 for pages that are neither selected nor new. */
  const int32_t* Selected(const SequencePlan& sequence, const tvm::ffi::Shape& pages);

  const PagedKVCacheConfig& config_;
  tvm::ffi::Optional<Function> select_;
  std::deque<std::vector<int32_t>> selected_pages_;  // the page tables of the last answer
  std::vector<const int32_t*> head_pages_;           // [sequences, num_kv_heads] into those
  tvm::ffi::Optional<Function> observer_;
  ObserverOptions observer_options_;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_STEP_ATTENTION_HOOKS_H_
