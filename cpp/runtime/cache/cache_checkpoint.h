/*!
 * \file runtime/cache/cache_checkpoint.h
 * \brief core's Checkpoint as an FFI object that keeps its cache alive.
 */
#ifndef KVCTL_RUNTIME_CACHE_CACHE_CHECKPOINT_H_
#define KVCTL_RUNTIME_CACHE_CACHE_CHECKPOINT_H_

#include <utility>

#include "runtime/cache/paged_kv_cache_impl.h"

namespace kvctl {

class CacheCheckpointImpl final : public CacheCheckpointObj {
 public:
  CacheCheckpointImpl(PagedKVCache cache, CheckpointPtr checkpoint)
      : cache_(std::move(cache)), checkpoint_(std::move(checkpoint)) {}
  ~CacheCheckpointImpl();

  Checkpoint* checkpoint() const { return checkpoint_.get(); }

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.CacheCheckpointImpl", CacheCheckpointImpl,
                                    CacheCheckpointObj);

 private:
  PagedKVCache cache_;
  CheckpointPtr checkpoint_;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_CACHE_CHECKPOINT_H_
