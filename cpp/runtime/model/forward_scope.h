/*!
 * \file runtime/model/forward_scope.h
 * \brief The scopes of a model's forward: the step of its cache, rollback on errors, and TVM's
 * threads.
 */
#ifndef KVCTL_RUNTIME_MODEL_FORWARD_SCOPE_H_
#define KVCTL_RUNTIME_MODEL_FORWARD_SCOPE_H_

#include <runtime/threading_backend.h>

#include <cstdint>
#include <vector>

#include "kvctl/paged_kv_cache.h"
#include "kvctl/recurrent_state.h"

namespace kvctl {

/*!
 * \brief A step of a model's cache and of its recurrent state, from construction to End.
 *
 * Either may be null. The destructor aborts a step that did not end, also where another thread uses
 * the cache: it waits for that thread.
 */
class StepScope {
 public:
  StepScope(const PagedKVCache& cache, const RecurrentState& state,
            const std::vector<StepRequest>& requests)
      : cache_(cache), state_(state) {
    if (state_.defined()) state_->BeginForward(requests);
    try {
      if (cache_.defined()) cache_->BeginForward(requests);
    } catch (...) {
      if (state_.defined()) state_->AbortForward();
      throw;
    }
  }
  void End() {
    if (state_.defined()) state_->CheckEndForward();
    if (cache_.defined()) cache_->EndForward();
    if (state_.defined()) state_->EndForward();
    ended_ = true;
  }
  ~StepScope() {
    if (ended_) return;
    try {
      if (state_.defined()) state_->AbortForward();
    } catch (...) {  // the first error is on its way already
    }
    try {
      if (cache_.defined()) cache_->AbortForward();
    } catch (...) {
    }
  }
  StepScope(const StepScope&) = delete;
  StepScope& operator=(const StepScope&) = delete;

 private:
  PagedKVCache cache_;
  RecurrentState state_;
  bool ended_ = false;
};

/*! \brief Runs several steps; if one throws, every sequence is rolled back to its start.
 */
template <typename F>
auto AllOrNothing(const PagedKVCache& cache, const RecurrentState& state,
                  const std::vector<int64_t>& seq_ids, F&& steps) -> decltype(steps()) {
  std::vector<CacheCheckpoint> cached;
  std::vector<RecurrentCheckpoint> states;
  for (int64_t id : seq_ids) {
    if (cache.defined()) cached.push_back(cache->MakeCheckpoint(id));
    if (state.defined()) states.push_back(state->MakeCheckpoint(id));
  }
  try {
    return steps();
  } catch (...) {
    for (size_t i = 0; i < seq_ids.size(); ++i) {
      if (cache.defined()) cache->Rollback(seq_ids[i], cached[i]);
      if (state.defined()) state->Rollback(seq_ids[i], states[i]);
    }
    throw;
  }
}

/*!
 * \brief Makes TVM run its loops in the calling thread while one of kvctl's own models runs.
 *
 * Those models run on OpenMP, and TVM's thread pool would compete with it. The setting is the
 * thread's.
 */
class OneTVMThread {
 public:
  explicit OneTVMThread(bool enabled)
      : before_(enabled ? tvm::runtime::threading::MaxConcurrency() : 0) {
    if (enabled) tvm::runtime::threading::SetMaxConcurrency(1);
  }
  ~OneTVMThread() {
    if (before_ > 0) tvm::runtime::threading::SetMaxConcurrency(before_);
  }
  OneTVMThread(const OneTVMThread&) = delete;
  OneTVMThread& operator=(const OneTVMThread&) = delete;

 private:
  int before_;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_MODEL_FORWARD_SCOPE_H_
