/*!
 * \file runtime/cache/backend/cuda_cache_backend.h
 * \brief A cache's pages on a CUDA device; the host keeps the sequence table.
 */
#ifndef KVCTL_RUNTIME_CACHE_BACKEND_CUDA_CACHE_BACKEND_H_
#define KVCTL_RUNTIME_CACHE_BACKEND_CUDA_CACHE_BACKEND_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/cache/backend/cache_backend.h"
#include "runtime/support/device.h"

namespace kvctl {

/*! \brief CUDA's backend. All work is queued on TVM's current stream. */
class CudaCacheBackend final : public CacheBackend {
 public:
  CudaCacheBackend(const PagedKVCacheConfig& config, KeyRotator* rotator, AttentionHooks* hooks);

  /*! \throws Error kNotImplemented for a configuration that this backend does not support, or
   * where the CUDA kernels are missing. */
  static void Check(const PagedKVCacheConfig& config);

  void BeginStep(ForwardStep* step) final;
  void ApplyCopies(const CopyPlan& copies) final;
  void ReadSlots(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                 const KVRows& v) const final;
  void WriteSlots(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                  const KVRows& v, const KVRows& plain_k) final;
  using CacheBackend::ReadSlots;
  using CacheBackend::WriteSlots;
  void ForgetGraphs() final { kernels_->ForgetGraphs(); }
  GraphState ReadGraphState() const final { return kernels_->ReadGraphState(); }
  UploadState ReadUploads(const StepPlan* step) const final;
  int64_t CountSaturated() const final;
  void PoisonSlots(const std::vector<int32_t>& slots) final;

 protected:
  void RotateSlots(const std::vector<int32_t>& slots, const RopeTable& table) final;
  void AppendAndAttend(ForwardStep* step, int32_t layer, const LayerAttention& call) final;

 private:
  void* stream() const { return CurrentStream(config_.device); }

  AttentionHooks& hooks_;
  std::unique_ptr<CudaCache> kernels_;
  std::vector<int64_t> seq_ids_;  // of the step
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_BACKEND_CUDA_CACHE_BACKEND_H_
