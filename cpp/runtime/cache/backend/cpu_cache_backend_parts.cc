// Attention in parts on the CPU, as TVM's interface offers it: to the new tokens, to the cached
// ones, to the K and V of another layer, and the merge of two results.
#include <cmath>
#include <numeric>

#include "kernels/merge_attention.h"
#include "kvctl/checking.h"
#include "runtime/cache/backend/cpu_cache_backend.h"
#include "runtime/cache/backend/written_check.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

using tvm::runtime::Tensor;

constexpr float kLog2E = 1.44269504f;
// The lse of a row that sees nothing. TVM's kernels begin their maxima here; being finite, it keeps
// the merge of two such rows from making NaN.
constexpr float kNothingSeen = -5e4f;

}  // namespace

void CpuCacheBackend::CheckRows(const ForwardStep& step, const Tensor& rows, const char* name,
                                int64_t num_heads) const {
  CheckTensor(rows.operator->(), name, config_.device,
              {step.plan().num_query_tokens(), num_heads, config_.head_dim});
}

void CpuCacheBackend::AttendPart(ForwardStep* step, const PartAttention& call) {
  const int32_t layer = step->AttendedLayer(call.layer_id);
  step->MarkInParts();
  const bool shared = call.kind == PartKind::kSharedKV;
  CheckRows(*step, call.q, "q_data", config_.num_qo_heads);
  if (call.kind != PartKind::kCross) {
    CheckRows(*step, call.k.value(), shared ? "current_k_data" : "k_data", config_.num_kv_heads);
    CheckRows(*step, call.v.value(), shared ? "current_v_data" : "v_data", config_.num_kv_heads);
  }
  CheckRows(*step, call.out, "o_data", config_.num_qo_heads);
  const QKVRows rows = rotator_.RotateParts(call.q, call.k, call.v, step->has_sinks());
  runs_.clear();
  const bool cached = step->CacheHoldsNewTokens(layer);
  if (call.kind != PartKind::kSelf) {
    AddPages(step, layer, rows, cached ? StepKeys::kAll : StepKeys::kPast);
  }
  if (call.kind == PartKind::kSelf || (shared && !cached)) AddNewRows(step, layer, rows);
  AttentionOptions options;
  options.lse = call.lse;
  const int64_t num_rows = step->plan().num_query_tokens();
  Run(num_rows, call.out, call.sm_scale, options);
  if (!call.lse.has_value()) return;
  float* lse = static_cast<float*>(DataPointer(call.lse.value().operator->()));
  for (int64_t i = 0; i < num_rows * config_.num_qo_heads; ++i) {
    lse[i] = std::isinf(lse[i]) && lse[i] < 0 ? kNothingSeen : lse[i] * kLog2E;
  }
}

void CpuCacheBackend::PlanNewRows(const StepPlan& plan) {
  if (!new_kv_.defined()) {
    new_kv_ = Tensor::Empty(
        {config_.prefill_chunk_size, 2, config_.num_kv_heads, 1, page_shape_.row_elements()},
        config_.dtype, config_.device);
  }
  if (new_rows_planned_) return;
  new_sequences_ = plan.sequences;
  new_pages_.resize(plan.sequences.size());
  for (size_t s = 0; s < new_sequences_.size(); ++s) {
    SequencePlan& sequence = new_sequences_[s];
    new_pages_[s].assign(sequence.kv_len(), -1);
    std::iota(new_pages_[s].end() - sequence.num_query_tokens, new_pages_[s].end(),
              sequence.query_begin);
    sequence.pages = new_pages_[s].data();
  }
  new_rows_planned_ = true;
}

void CpuCacheBackend::AddNewRows(ForwardStep* step, int32_t layer, const QKVRows& rows) {
  const StepPlan& plan = step->plan();
  PlanNewRows(plan);
  PageShape shape = page_shape_;
  shape.page_size = 1;  // each row is a page of its own
  std::vector<int32_t> slots(plan.num_query_tokens());
  std::iota(slots.begin(), slots.end(), 0);
  WriteSlotsCpu(shape, DataPointer(new_kv_.operator->()), slots.data(), plan.num_query_tokens(),
                rows.k, rows.v);
  if (Checking()) {
    CheckWritten(*step, {config_.first_layer + layer, shape, DataPointer(new_kv_.operator->()),
                         slots, rows.k, rows.v});
  }
  const size_t first = runs_.size();
  AddPages(step, layer, rows, StepKeys::kNew);
  for (size_t run = first; run < runs_.size(); ++run) {
    AttentionArgs& args = runs_[run];
    args.pages = DataPointer(new_kv_.operator->());
    args.page_size = 1;
    args.sequences = new_sequences_.data();
  }
}

void CpuCacheBackend::Merge(const AttentionResults& results) {
  const int64_t heads = config_.num_qo_heads, head_dim = config_.head_dim;
  const Tensor &out = results.out, &other = results.other_out;
  CheckTensor(out.operator->(), "o_self_attn", config_.device, {kAnyExtent, heads, head_dim});
  const int64_t rows = out->shape[0];
  CheckTensor(other.operator->(), "o_cross_attn", config_.device, {rows, heads, head_dim});
  MergeAttentionCpu(rows, heads, head_dim, LseBase::kTwo,
                    {DataPointer(out.operator->()), FloatDType(out.DataType(), "o_self_attn"),
                     OptionData(results.lse, "lse_self_attn", {rows, heads})},
                    {DataPointer(other.operator->()), FloatDType(other.DataType(), "o_cross_attn"),
                     OptionData(results.other_lse, "lse_cross_attn", {rows, heads})});
}

}  // namespace kvctl
