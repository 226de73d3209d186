// Attention on the CPU: one layer of a step.
#include <algorithm>
#include <cstring>

#include "kernels/convert_row.h"
#include "kernels/merge_attention.h"
#include "kvctl/checking.h"
#include "runtime/cache/backend/cpu_cache_backend.h"
#include "runtime/cache/backend/written_check.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

using tvm::runtime::Tensor;

void CpuCacheBackend::BeginStep(ForwardStep* step) {
  rotator_.SetStep(step->plan());
  if (step->has_sinks()) rotator_.SetSinks(step->sink_positions());
  new_rows_planned_ = false;
}

void CpuCacheBackend::AppendAndAttend(ForwardStep* step, int32_t layer,
                                      const LayerAttention& call) {
  const int64_t num_rows = step->plan().num_query_tokens();
  const QKVRows rows = rotator_.RotateStep(call.given, num_rows, step->has_sinks());
  Append(step, layer, rows);
  runs_.clear();
  AddPages(step, layer, rows, StepKeys::kAll);
  if (hooks_.observes() || call.options.mass.has_value()) {
    RunObserved(*step, call);
  } else {
    Run(num_rows, call.out, call.sm_scale, call.options);
  }
}

void CpuCacheBackend::Append(ForwardStep* step, int32_t layer, const QKVRows& rows) {
  const StepPlan& plan = step->plan();
  WriteSlots(layer, plan.slots, rows.k, rows.v, plain_keys_.empty() ? KVRows{} : rows.plain_k);
  if (Checking()) CheckAppended(*step, layer, rows);
  step->MarkWritten(layer);
}

void CpuCacheBackend::CheckAppended(const ForwardStep& step, int32_t layer,
                                    const QKVRows& rows) const {
  const int64_t layer_id = config_.first_layer + layer;
  const std::vector<int32_t>& slots = step.plan().slots;
  CheckWritten(step, {layer_id, page_shape_, DataPointer(pages_[layer].operator->()), slots, rows.k,
                      rows.v});
  if (plain_keys_.empty()) return;
  CheckWritten(step, {layer_id, plain_key_shape_, DataPointer(plain_keys_[layer].operator->()),
                      slots, rows.plain_k, KVRows{}});
}

Tensor CpuCacheBackend::CopyRows(const KVRows& q, int64_t num_rows) const {
  const int64_t element = DTypeSize(q.dtype), width = config_.num_qo_heads * config_.head_dim;
  Tensor rows = Tensor::Empty({num_rows, config_.num_qo_heads, config_.head_dim},
                              ToDLDataType(q.dtype), config_.device);
  auto* to = static_cast<char*>(DataPointer(rows.operator->()));
  for (int64_t row = 0; row < num_rows; ++row) {
    std::memcpy(to + row * width * element,
                static_cast<const char*>(q.data) + row * q.row_stride * element, width * element);
  }
  return rows;
}

void CpuCacheBackend::AddPages(ForwardStep* step, int32_t layer, const QKVRows& rows,
                               StepKeys keys) {
  const StepPlan& plan = step->plan();
  StepMasks& masks = step->MasksOf(keys);
  AttentionArgs args;
  args.q = rows.q.data;
  args.q_dtype = rows.q.dtype;
  args.q_row_stride = rows.q.row_stride;
  args.num_qo_heads = static_cast<int32_t>(config_.num_qo_heads);
  args.pages = DataPointer(pages_[layer].operator->());
  args.kv_dtype = page_shape_.dtype;
  args.num_kv_heads = page_shape_.num_kv_heads;
  args.page_size = page_shape_.page_size;
  args.head_dim = page_shape_.head_dim;
  args.sequences = plan.sequences.data();
  args.num_sequences = static_cast<int32_t>(plan.sequences.size());
  args.masks = masks.masks.layer(layer);
  args.workspace = &workspace_;
  if (hooks_.selects()) {
    args.head_pages = hooks_.SelectPages(plan, layer, CopyRows(rows.q, plan.num_query_tokens()));
  }
  runs_.push_back(args);
  if (!step->has_sinks()) return;
  args.q = rows.q_at_sinks.data;
  args.q_row_stride = rows.q_at_sinks.row_stride;
  args.masks = masks.sinks.layer(layer);
  runs_.push_back(args);
}

void CpuCacheBackend::Run(int64_t num_rows, const Tensor& out, double sm_scale,
                          const AttentionOptions& options) {
  const int64_t heads = config_.num_qo_heads, head_dim = config_.head_dim, size = num_rows * heads;
  const DType out_dtype = FloatDType(out.DataType(), "the attention output");
  float* lse = OptionData(options.lse, "lse", {num_rows, heads});
  const bool several = runs_.size() > 1;
  for (size_t run = 0; run < runs_.size(); ++run) {
    AttentionArgs& args = runs_[run];
    auto& into = run == 0 ? merged_ : part_;
    if (several) {
      into.out.resize(size * head_dim);
      into.lse.resize(size);
    }
    args.out = several ? into.out.data() : DataPointer(out.operator->());
    args.out_dtype = several ? DType::kFloat32 : out_dtype;
    args.out_row_stride = heads * head_dim;
    args.lse = several ? into.lse.data() : lse;
    args.sm_scale = static_cast<float>(sm_scale);
    args.soft_cap = static_cast<float>(options.soft_cap);
    args.alibi_slopes = OptionData(options.alibi_slopes, "alibi_slopes", {heads});
    // The sum contains the logit without a value once.
    if (run == 0) args.sinks = OptionData(options.sinks, "sinks", {heads});
    AttentionCpu(args);
    if (run == 0) continue;
    MergeAttentionCpu(num_rows, heads, head_dim, LseBase::kE,
                      {merged_.out.data(), DType::kFloat32, merged_.lse.data()},
                      {part_.out.data(), DType::kFloat32, part_.lse.data()});
  }
  if (!several) return;
  ConvertRow(merged_.out.data(), DType::kFloat32, DataPointer(out.operator->()), out_dtype,
             size * head_dim);
  if (lse != nullptr) std::copy_n(merged_.lse.data(), size, lse);
}

void CpuCacheBackend::RunObserved(const ForwardStep& step, const LayerAttention& call) {
  const int64_t num_rows = step.plan().num_query_tokens(), heads = config_.num_qo_heads;
  AttentionMass own;  // the sums that the call itself asks for, checked before anything happens
  if (call.options.mass.has_value()) {
    const Tensor mass = call.options.mass.value();
    own.num_heads = static_cast<int32_t>(
        mass->ndim == 2 && mass->shape[1] == heads ? heads : config_.num_kv_heads);
    own.sums = OptionData(mass, "mass", {step.num_keys(), own.num_heads});
  }
  AttentionOptions with_lse = call.options;
  if (!with_lse.lse.has_value()) {
    with_lse.lse = Tensor::Empty({num_rows, heads}, {kDLFloat, 32, 1}, config_.device);
  }
  Run(num_rows, call.out, call.sm_scale, with_lse);
  // Weights are shares of the sum over all runs.
  const auto sum_up = [&](const AttentionMass& mass) {
    for (AttentionArgs& args : runs_) {
      args.lse = static_cast<float*>(DataPointer(with_lse.lse.value().operator->()));
      AttentionMassCpu(args, mass);
    }
  };
  if (own.sums != nullptr) sum_up(own);
  if (!hooks_.observes()) return;
  hooks_.Observe(step, call.layer_id, [&](const AttentionMass& mass) {
    std::fill_n(mass.sums, step.num_keys() * mass.num_heads, 0.f);
    sum_up(mass);
  });
}

}  // namespace kvctl
