/*!
 * \file runtime/cache/backend/cpu_cache_backend.h
 * \brief A cache's pages in host memory.
 */
#ifndef KVCTL_RUNTIME_CACHE_BACKEND_CPU_CACHE_BACKEND_H_
#define KVCTL_RUNTIME_CACHE_BACKEND_CPU_CACHE_BACKEND_H_

#include <cstdint>
#include <vector>

#include "kernels/attention.h"
#include "runtime/cache/backend/cache_backend.h"

namespace kvctl {

/*!
 * \brief The CPU's backend. Attention may take several runs of the kernel over disjoint keys,
 * whose results are merged by their log-sum-exps.
 */
class CpuCacheBackend final : public CacheBackend {
 public:
  CpuCacheBackend(const PagedKVCacheConfig& config, KeyRotator* rotator, AttentionHooks* hooks);

  void BeginStep(ForwardStep* step) final;
  void AttendPart(ForwardStep* step, const PartAttention& call) final;
  void Merge(const AttentionResults& results) final;
  void ApplyCopies(const CopyPlan& copies) final;
  void ReadSlots(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                 const KVRows& v) const final;
  void WriteSlots(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                  const KVRows& v, const KVRows& plain_k) final;
  using CacheBackend::ReadSlots;
  using CacheBackend::WriteSlots;
  void PoisonSlots(const std::vector<int32_t>& slots) final;

 protected:
  void RotateSlots(const std::vector<int32_t>& slots, const RopeTable& table) final;
  void AppendAndAttend(ForwardStep* step, int32_t layer, const LayerAttention& call) final;

 private:
  /*! \brief Calls f(shape, data of one layer's pages) for every array of pages. */
  template <typename F>
  void ForEachArray(F&& f) const {
    for (const Tensor& pages : pages_) f(page_shape_, DataPointer(pages.operator->()));
    for (const Tensor& keys : plain_keys_) f(plain_key_shape_, DataPointer(keys.operator->()));
  }
  void Append(ForwardStep* step, int32_t layer, const QKVRows& rows);
  /*! \brief Checks what Append wrote; see kvctl/checking.h. */
  void CheckAppended(const ForwardStep& step, int32_t layer, const QKVRows& rows) const;
  /*! \brief The step's rows of q as a page selector gets them. */
  Tensor CopyRows(const KVRows& q, int64_t num_rows) const;
  /*! \brief Adds the runs over keys in the layer's pages: one, and one for renumbered sinks. */
  void AddPages(ForwardStep* step, int32_t layer, const QKVRows& rows, StepKeys keys);
  /*! \brief Adds the runs over the new keys, whose K and V are in `rows`. */
  void AddNewRows(ForwardStep* step, int32_t layer, const QKVRows& rows);
  /*! \brief Lays out the step's new rows as pages of one row in new_kv_. */
  void PlanNewRows(const StepPlan& plan);
  /*! \brief Runs the kernel over runs_, and merges the results. */
  void Run(int64_t num_rows, const Tensor& out, double sm_scale, const AttentionOptions& options);
  /*! \brief Run, then the sums of attention for `options.mass` and the observer. */
  void RunObserved(const ForwardStep& step, const LayerAttention& call);
  void CheckRows(const ForwardStep& step, const Tensor& rows, const char* name,
                 int64_t num_heads) const;

  // With inline RoPE K before its rotation, [layers] (num_pages, 1, num_kv_heads, page_size,
  // head_dim). pages_ hold K rotated once, so that attention need not rotate it at every read.
  std::vector<Tensor> plain_keys_;
  PageShape plain_key_shape_;
  AttentionHooks& hooks_;
  AttentionWorkspace workspace_;
  std::vector<AttentionArgs> runs_;  // of the call in progress
  struct {
    std::vector<float> out, lse;
  } merged_, part_;  // of attention in several runs
  Tensor new_kv_;    // [prefill_chunk_size, 2, num_kv_heads, 1, row elements]: K and V given
  bool new_rows_planned_ = false;                // for the step in flight
  std::vector<SequencePlan> new_sequences_;      // the step's, over new_kv_
  std::vector<std::vector<int32_t>> new_pages_;  // their page tables
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_BACKEND_CPU_CACHE_BACKEND_H_
