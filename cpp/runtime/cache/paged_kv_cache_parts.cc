// Attention in parts, as TVM's interface offers it: to the new tokens, to the past, to the K and V
// of another layer, and the merge of two results.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/merge_attention.h"
#include "kvctl/error.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

constexpr float kLog2E = 1.44269504f;
// TVM's kernels begin their maxima here; so a row that sees nothing has this lse, and merging two
// of them makes no NaN.
constexpr float kNothingSeen = -5e4f;

}  // namespace

void PagedKVCacheImpl::AddRows(int32_t layer, const QKVRows& rows,
                               std::vector<AttentionArgs>* runs) {
  const StepPlan& plan = table_.plan();
  const bool prepared = new_.lowered;  // both are, once in a step
  // Each row is a page of its own.
  PageShape shape = page_shape_;
  shape.page_size = 1;
  if (!new_kv_.defined()) {
    new_kv_ =
        Tensor::Empty({config_.prefill_chunk_size, 2, config_.num_kv_heads, 1, config_.head_dim},
                      config_.dtype, config_.device);
  }
  if (!prepared) {
    new_sequences_ = plan.sequences;
    new_pages_.resize(plan.sequences.size());
    for (size_t s = 0; s < new_sequences_.size(); ++s) {
      SequencePlan& sequence = new_sequences_[s];
      new_pages_[s].assign(sequence.kv_len(), -1);
      std::iota(new_pages_[s].end() - sequence.num_query_tokens, new_pages_[s].end(),
                sequence.query_begin);
      sequence.pages = new_pages_[s].data();
    }
  }
  std::vector<int32_t> slots(plan.num_query_tokens());
  std::iota(slots.begin(), slots.end(), 0);
  WriteSlotsCpu(shape, DataPointer(new_kv_.operator->()), slots.data(), plan.num_query_tokens(),
                rows.k, rows.v);
  const size_t first = runs->size();
  AddPages(layer, rows, Columns::kNew, runs);
  for (size_t run = first; run < runs->size(); ++run) {
    AttentionArgs& args = (*runs)[run];
    args.pages = DataPointer(new_kv_.operator->());
    args.page_size = 1;
    args.sequences = new_sequences_.data();
  }
}

bool PagedKVCacheImpl::SeesNewTokens(int32_t layer) const {
  if (!appended_[layer]) return false;
  const StepPlan& plan = table_.plan();
  bool decode = !config_.sliding_windows;
  for (const SequencePlan& sequence : plan.sequences) {
    if (sequence.num_pending > sequence.num_query_tokens) return true;  // a tree that grows
    decode &= sequence.num_query_tokens == 1;
  }
  for (const StepRequest& request : requests_) {
    decode &= table_.Get(request.seq_id).window.size == 0;
  }
  return decode;
}

void PagedKVCacheImpl::CheckRows(const Tensor& rows, const char* name, int64_t num_heads) const {
  CheckTensor(rows.operator->(), name, config_.device,
              {table_.plan().num_query_tokens(), num_heads, config_.head_dim});
}

void PagedKVCacheImpl::AttendInBase2(std::vector<AttentionArgs>* runs, const Tensor& out,
                                     const Tensor& lse, double sm_scale) {
  AttentionOptions options;
  options.lse = lse;
  Attend(runs, out, sm_scale, options);
  float* values = static_cast<float*>(DataPointer(lse.operator->()));
  for (int64_t i = 0; i < table_.plan().num_query_tokens() * config_.num_qo_heads; ++i) {
    values[i] = std::isinf(values[i]) && values[i] < 0 ? kNothingSeen : values[i] * kLog2E;
  }
}

void PagedKVCacheImpl::SelfAttention(int64_t layer_id, Tensor q, Tensor k, Tensor v, Tensor out,
                                     Tensor lse, double sm_scale) {
  WithLock([&] {
    RequireForward();
    in_parts_ = true;
    const int32_t layer = LocalLayer(layer_id);
    CheckRows(q, "q_data", config_.num_qo_heads);
    CheckRows(k, "k_data", config_.num_kv_heads);
    CheckRows(v, "v_data", config_.num_kv_heads);
    CheckRows(out, "o_data", config_.num_qo_heads);
    std::vector<AttentionArgs> runs;
    AddRows(layer, RotateParts(q, k, v), &runs);
    AttendInBase2(&runs, out, lse, sm_scale);
  });
}

void PagedKVCacheImpl::CrossAttention(int64_t layer_id, Tensor q, Tensor out, Tensor lse,
                                      double sm_scale) {
  WithLock([&] {
    RequireForward();
    in_parts_ = true;
    const int32_t layer = LocalLayer(layer_id);
    CheckRows(q, "q_data", config_.num_qo_heads);
    CheckRows(out, "o_data", config_.num_qo_heads);
    const QKVRows rows = RotateParts(q, std::nullopt, std::nullopt);
    std::vector<AttentionArgs> runs;
    AddPages(layer, rows, SeesNewTokens(layer) ? Columns::kAll : Columns::kPast, &runs);
    AttendInBase2(&runs, out, lse, sm_scale);
  });
}

void PagedKVCacheImpl::AttentionWithSharedKV(int64_t source_layer_id, Tensor q, Tensor k, Tensor v,
                                             Tensor out, double sm_scale) {
  WithLock([&] {
    RequireForward();
    in_parts_ = true;
    const int32_t layer = LocalLayer(source_layer_id);
    CheckRows(q, "q_data", config_.num_qo_heads);
    CheckRows(k, "current_k_data", config_.num_kv_heads);
    CheckRows(v, "current_v_data", config_.num_kv_heads);
    CheckRows(out, "o_data", config_.num_qo_heads);
    const QKVRows rows = RotateParts(q, k, v);
    std::vector<AttentionArgs> runs;
    const bool in_pages = SeesNewTokens(layer);
    AddPages(layer, rows, in_pages ? Columns::kAll : Columns::kPast, &runs);
    if (!in_pages) AddRows(layer, rows, &runs);
    Attend(&runs, out, sm_scale, {});
  });
}

tvm::ffi::Array<PagedKVCacheImpl::Tensor> PagedKVCacheImpl::MergeAttnOutputInplace(
    Tensor out, Tensor lse, Tensor other_out, Tensor other_lse) {
  WithLock([&] {
    RequireCpu(config_.device, "attention in parts");
    const int64_t heads = config_.num_qo_heads, head_dim = config_.head_dim;
    CheckTensor(out.operator->(), "o_self_attn", config_.device, {kAnyExtent, heads, head_dim});
    const int64_t rows = out->shape[0];
    CheckTensor(other_out.operator->(), "o_cross_attn", config_.device, {rows, heads, head_dim});
    MergeAttentionCpu(
        rows, heads, head_dim, LseBase::kTwo,
        {DataPointer(out.operator->()), FloatDType(out.DataType(), "o_self_attn"),
         PerHead(lse, "lse_self_attn", {rows, heads})},
        {DataPointer(other_out.operator->()), FloatDType(other_out.DataType(), "o_cross_attn"),
         PerHead(other_lse, "lse_cross_attn", {rows, heads})});
  });
  return {out, lse};
}

}  // namespace kvctl
