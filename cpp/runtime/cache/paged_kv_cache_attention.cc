// Attention on the paged cache.
#include <algorithm>

#include "kernels/convert_row.h"
#include "kernels/merge_attention.h"
#include "kvctl/error.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

int32_t PagedKVCacheImpl::LocalLayer(int64_t layer_id) const {
  const int64_t local = layer_id - config_.first_layer;
  if (local < 0 || local >= config_.num_layers) {
    Throw(ErrorKind::kIndex, "layer ", layer_id, " is not in the cache, which has layers ",
          config_.first_layer, " to ", config_.first_layer + config_.num_layers - 1);
  }
  return static_cast<int32_t>(local);
}

int64_t PagedKVCacheImpl::RequireForward() const {
  if (!table_.in_forward()) {
    Throw(ErrorKind::kRuntime, "attention is only possible between begin_forward and end_forward");
  }
  return table_.plan().num_query_tokens();
}

void PagedKVCacheImpl::AppendKV(int32_t layer, const QKVRows& rows) {
  const StepPlan& plan = table_.plan();
  WriteSlotsCpu(page_shape_, DataPointer(pages_[layer].operator->()), plan.slots.data(),
                plan.num_query_tokens(), rows.k, rows.v);
  if (!plain_keys_.empty()) {
    WriteSlotsCpu(plain_key_shape_, DataPointer(plain_keys_[layer].operator->()), plan.slots.data(),
                  plan.num_query_tokens(), rows.plain_k, {});
  }
  appended_[layer] = true;
}

void PagedKVCacheImpl::AddPages(int32_t layer, const QKVRows& rows, Columns columns,
                                std::vector<AttentionArgs>* runs) {
  RequireCpu(config_.device, "attention in parts");
  const StepPlan& plan = table_.plan();
  StepMasks& masks = MasksOf(columns);
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
  if (select_.has_value()) {
    SelectPages(layer, rows.q.data, rows.q.dtype, rows.q.row_stride);
    args.head_pages = head_pages_.data();
  }
  runs->push_back(args);
  if (sink_masks_.empty()) return;
  args.q = rows.q_at_sinks.data;
  args.q_row_stride = rows.q_at_sinks.row_stride;
  args.masks = masks.sinks.layer(layer);
  runs->push_back(args);
}

void PagedKVCacheImpl::Attend(std::vector<AttentionArgs>* runs, const Tensor& out, double sm_scale,
                              const AttentionOptions& options) {
  const int64_t rows = table_.plan().num_query_tokens(), heads = config_.num_qo_heads;
  const int64_t head_dim = config_.head_dim, size = rows * heads;
  const DType out_dtype = FloatDType(out.DataType(), "the attention output");
  float* lse = PerHead(options.lse, "lse", {rows, heads});
  const bool several = runs->size() > 1;
  for (size_t run = 0; run < runs->size(); ++run) {
    AttentionArgs& args = (*runs)[run];
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
    args.alibi_slopes = PerHead(options.alibi_slopes, "alibi_slopes", {heads});
    // The logit without a value is in the sum once.
    if (run == 0) args.sinks = PerHead(options.sinks, "sinks", {heads});
    AttentionCpu(args);
    if (run == 0) continue;
    MergeAttentionCpu(rows, heads, head_dim, LseBase::kE,
                      {merged_.out.data(), DType::kFloat32, merged_.lse.data()},
                      {part_.out.data(), DType::kFloat32, part_.lse.data()});
  }
  if (!several) return;
  ConvertRow(merged_.out.data(), DType::kFloat32, DataPointer(out.operator->()), out_dtype,
             size * head_dim);
  if (lse != nullptr) std::copy_n(merged_.lse.data(), size, lse);
}

float* PagedKVCacheImpl::PerHead(const tvm::ffi::Optional<Tensor>& tensor, const char* name,
                                 std::initializer_list<int64_t> shape) const {
  if (!tensor.has_value()) return nullptr;
  const DLTensor* data = tensor.value().operator->();
  CheckTensor(data, name, config_.device, shape);
  if (data->dtype.code != kDLFloat || data->dtype.bits != 32) {
    Throw(ErrorKind::kType, name, " must be float32");
  }
  return static_cast<float*>(DataPointer(data));
}

void PagedKVCacheImpl::AttentionWithFusedQKV(int64_t layer_id, Tensor qkv,
                                             tvm::ffi::Optional<Tensor> mask, Tensor out,
                                             double sm_scale) {
  Guard([&] {
    if (mask.has_value()) {
      Throw(ErrorKind::kNotImplemented,
            "kvctl takes masks at begin_forward, not in the attention call");
    }
  });
  Attention(layer_id, qkv, out, sm_scale, {});
}

void PagedKVCacheImpl::Attention(int64_t layer_id, const Tensor& qkv, const Tensor& out,
                                 double sm_scale, const AttentionOptions& options) {
  WithLock([&] {
    const int64_t num_rows = RequireForward();
    const int32_t layer = LocalLayer(layer_id);
    const int64_t qo_heads = config_.num_qo_heads, head_dim = config_.head_dim;
    CheckTensor(qkv.operator->(), "qkv", config_.device,
                {kAnyExtent, qo_heads + 2 * config_.num_kv_heads, head_dim});
    CheckTensor(out.operator->(), "the attention output", config_.device,
                {qkv->shape[0], qo_heads, head_dim});
    if (qkv->shape[0] < num_rows) {
      Throw(ErrorKind::kValue, "qkv has ", qkv->shape[0], " rows and the step has ", num_rows,
            " new tokens");
    }
    if (cuda_ != nullptr) {
      if (options.mass.has_value()) RefuseToObserve();
      return AttendOnCuda(layer, qkv, num_rows, out, sm_scale, options);
    }
    const QKVRows rows = RotateStep(qkv);
    AppendKV(layer, rows);
    std::vector<AttentionArgs> runs;
    AddPages(layer, rows, Columns::kAll, &runs);
    if (observer_.has_value() || options.mass.has_value()) {
      AttendObserved(layer_id, &runs, out, sm_scale, options);
    } else {
      Attend(&runs, out, sm_scale, options);
    }
  });
}

}  // namespace kvctl
