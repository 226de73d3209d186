#include "runtime/cache/backend/cuda_cache_backend.h"

#include <optional>

#include "kvctl/checking.h"
#include "kvctl/error.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

void CudaCacheBackend::Check(const PagedKVCacheConfig& config) {
  CudaKernels();
  if (PageDType(config.dtype) == DType::kInt8 &&
      !CapabilityOf(CacheFeature::kInt8Pages).On(CacheDevice::kCuda)) {
    Refuse(CacheFeature::kInt8Pages);
  }
  if (config.rope_mode == RopeMode::kInline &&
      !CapabilityOf(CacheFeature::kInlineRope).On(CacheDevice::kCuda)) {
    Refuse(CacheFeature::kInlineRope);
  }
}

CudaCacheBackend::CudaCacheBackend(const PagedKVCacheConfig& config, KeyRotator* rotator,
                                   AttentionHooks* hooks)
    : CacheBackend(CacheDevice::kCuda, config, rotator), hooks_(*hooks) {
  const RopeTable* table = rotator->step_table();
  CudaCacheConfig cuda{};
  cuda.device = config.device.device_id;
  cuda.page = page_shape_;
  cuda.num_layers = static_cast<int32_t>(config.num_layers);
  cuda.num_qo_heads = static_cast<int32_t>(config.num_qo_heads);
  cuda.num_pages = static_cast<int32_t>(config.num_pages);
  cuda.max_query_tokens = static_cast<int32_t>(config.prefill_chunk_size);
  cuda.rotary_dim = table == nullptr ? 0 : table->params().rotary_dim;
  for (const Tensor& pages : pages_) cuda.pages.push_back(DataPointer(pages.operator->()));
  if (page_shape_.dtype == DType::kFloat8) cuda.kv_scales = KVScales(config);
  kernels_.reset(CudaKernels().create_cache(cuda));
}

void CudaCacheBackend::BeginStep(ForwardStep* step) {
  if (Checking()) Require(CacheFeature::kWrittenCheck);
  rotator_.FillStepTable(step->plan());
  const auto angles = [](const RopeTable* table) {
    return table == nullptr ? nullptr : table->row(0);
  };
  const auto pointer = [](const tvm::runtime::Tensor& positions) {
    return static_cast<int32_t*>(DataPointer(positions.operator->()));
  };
  const StepMasks& masks = step->MasksOf(StepKeys::kAll);
  std::optional<CudaSinks> sinks;
  if (step->has_sinks()) {
    rotator_.FillSinkTable(step->sink_positions());
    sinks.emplace(CudaSinks{masks.sinks, step->sink_positions(), angles(rotator_.sink_table()),
                            pointer(rotator_.sink_positions())});
  }
  seq_ids_.clear();
  for (size_t i = 0; i < step->plan().sequences.size(); ++i) {
    seq_ids_.push_back(step->sequence_id(i));
  }
  kernels_->BeginStep(
      {step->plan(), seq_ids_.data(), masks.masks, angles(rotator_.step_table()),
       pointer(rotator_.step_positions()), sinks ? &*sinks : nullptr, !hooks_.selects()},
      stream());
}

void CudaCacheBackend::AppendAndAttend(ForwardStep* step, int32_t layer,
                                       const LayerAttention& call) {
  const int64_t num_rows = step->plan().num_query_tokens(), heads = config_.num_qo_heads;
  const QKVRows rows = rotator_.RotateStepByLibrary(call.given, num_rows, step->has_sinks());
  CudaAttention attention{};
  attention.layer = layer;
  attention.q = rows.q;
  attention.k = rows.k;
  attention.v = rows.v;
  attention.q_at_sinks = rows.q_at_sinks;
  attention.rotates = rotator_.step_table() != nullptr;
  attention.out = {DataPointer(call.out.operator->()),
                   FloatDType(call.out.DataType(), "the attention output"),
                   heads * config_.head_dim};
  attention.sm_scale = static_cast<float>(call.sm_scale);
  attention.soft_cap = static_cast<float>(call.options.soft_cap);
  attention.alibi_slopes = OptionData(call.options.alibi_slopes, "alibi_slopes", {heads});
  attention.sinks = OptionData(call.options.sinks, "sinks", {heads});
  const bool sums = hooks_.observes() || call.options.mass.has_value();
  tvm::ffi::Optional<Tensor> lse = call.options.lse;
  if (sums && !lse.has_value()) {
    lse = Tensor::Empty({num_rows, heads}, {kDLFloat, 32, 1}, config_.device);
  }
  attention.lse = OptionData(lse, "lse", {num_rows, heads});
  CudaAttentionMass own{};  // that the call itself asks for, checked before anything happens
  if (call.options.mass.has_value()) {
    const Tensor mass = call.options.mass.value();
    own.num_heads = static_cast<int32_t>(
        mass->ndim == 2 && mass->shape[1] == heads ? heads : config_.num_kv_heads);
    own.sums = OptionData(mass, "mass", {step->num_keys(), own.num_heads});
  }
  Tensor q;
  if (hooks_.selects()) {
    q = Tensor::Empty({num_rows, heads, config_.head_dim},
                      ToDLDataType(QueryDType(page_shape_.dtype)), config_.device);
    attention.q_out = DataPointer(q.operator->());
    attention.select = [&] { return hooks_.SelectPages(step->plan(), layer, q); };
  }
  attention.of_one_step = hooks_.selects() || sums;
  kernels_->Attend(attention, stream());
  step->MarkWritten(layer);
  if (own.sums != nullptr) kernels_->SumWeights(own, stream());
  if (!hooks_.observes()) return;
  hooks_.Observe(*step, call.layer_id, [&](const AttentionMass& mass) {
    kernels_->SumWeights(
        {mass.sums, mass.num_heads, mass.last_queries, step->num_keys() * mass.num_heads},
        stream());
  });
}

UploadState CudaCacheBackend::ReadUploads(const StepPlan* step) const {
  return kernels_->CompareUploads(step, stream());
}

int64_t CudaCacheBackend::CountSaturated() const {
  return page_shape_.dtype == DType::kFloat8 ? kernels_->CountSaturated(stream()) : 0;
}

void CudaCacheBackend::ApplyCopies(const CopyPlan& copies) {
  if (!copies.empty()) kernels_->Move(copies, stream());
}

void CudaCacheBackend::ReadSlots(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                                 const KVRows& v) const {
  kernels_->ReadSlots(static_cast<int32_t>(layer), slots, k, v, stream());
}

void CudaCacheBackend::WriteSlots(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                                  const KVRows& v, const KVRows&) {
  kernels_->WriteSlots(static_cast<int32_t>(layer), slots, k, v, stream());
}

void CudaCacheBackend::RotateSlots(const std::vector<int32_t>& slots, const RopeTable& table) {
  kernels_->RotateSlots(slots, table.row(0), stream());
}

void CudaCacheBackend::PoisonSlots(const std::vector<int32_t>& slots) {
  for (int32_t layer = 0; layer < static_cast<int32_t>(config_.num_layers); ++layer) {
    kernels_->PoisonSlots(layer, slots, stream());
  }
}

}  // namespace kvctl
