// The paged cache on a CUDA device: the same tables on the host, pages and attention on the device.
#include "kvctl/error.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

void PagedKVCacheImpl::CreateOnCuda() {
  if (!IsCuda(config_.device)) return;
  CudaCacheConfig config{};
  config.device = config_.device.device_id;
  config.page = page_shape_;
  config.num_layers = static_cast<int32_t>(config_.num_layers);
  config.num_qo_heads = static_cast<int32_t>(config_.num_qo_heads);
  config.num_pages = static_cast<int32_t>(config_.num_pages);
  config.max_query_tokens = static_cast<int32_t>(config_.prefill_chunk_size);
  config.rotary_dim =
      step_rotation_.table == nullptr ? 0 : step_rotation_.table->params().rotary_dim;
  for (const Tensor& pages : pages_) config.pages.push_back(DataPointer(pages.operator->()));
  cuda_.reset(CudaKernels().create_cache(config));
}

void PagedKVCacheImpl::BeginOnCuda() {
  if (cuda_ == nullptr) return;
  if (!sink_masks_.empty()) RequireCpu(config_.device, "a sliding window that renumbers its sinks");
  const RopeTable* table = step_rotation_.table.get();
  cuda_->BeginStep(table_.plan(), MasksOf(Columns::kAll).masks,
                   table == nullptr ? nullptr : table->row(0),
                   static_cast<int32_t*>(DataPointer(step_rotation_.positions.operator->())),
                   CurrentStream(config_.device));
}

void PagedKVCacheImpl::AttendOnCuda(int32_t layer, const Tensor& qkv, int64_t num_rows,
                                    const Tensor& out, double sm_scale,
                                    const AttentionOptions& options) {
  const int64_t heads = config_.num_qo_heads;
  const QKVRows rows = Rotate(qkv, num_rows, &step_rotation_);
  CudaAttention call{};
  call.layer = layer;
  call.q = rows.q;
  call.k = rows.k;
  call.v = rows.v;
  call.rotates = step_rotation_.table != nullptr;
  call.out = {DataPointer(out.operator->()), FloatDType(out.DataType(), "the attention output"),
              heads * config_.head_dim};
  call.sm_scale = static_cast<float>(sm_scale);
  call.soft_cap = static_cast<float>(options.soft_cap);
  call.alibi_slopes = PerHead(options.alibi_slopes, "alibi_slopes", {heads});
  call.sinks = PerHead(options.sinks, "sinks", {heads});
  call.lse = PerHead(options.lse, "lse", {num_rows, heads});
  cuda_->Attend(call, CurrentStream(config_.device));
  appended_[layer] = true;
}

void PagedKVCacheImpl::PoisonOnCuda(const std::vector<bool>& used) {
  std::vector<int32_t> slots;
  for (size_t slot = 0; slot < used.size(); ++slot) {
    if (!used[slot]) slots.push_back(static_cast<int32_t>(slot));
  }
  for (int32_t layer = 0; layer < static_cast<int32_t>(config_.num_layers); ++layer) {
    cuda_->PoisonSlots(layer, slots, CurrentStream(config_.device));
  }
}

}  // namespace kvctl
