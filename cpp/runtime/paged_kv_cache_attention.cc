// Attention on the paged cache.
#include "kvctl/error.h"
#include "runtime/paged_kv_cache_impl.h"
#include "runtime/tensor_view.h"

namespace kvctl {

int32_t PagedKVCacheImpl::LocalLayer(int64_t layer_id) const {
  const int64_t local = layer_id - config_.first_layer;
  if (local < 0 || local >= config_.num_layers) {
    Throw(ErrorKind::kIndex, "layer ", layer_id, " is not in the cache, which has layers ",
          config_.first_layer, " to ", config_.first_layer + config_.num_layers - 1);
  }
  return static_cast<int32_t>(local);
}

void PagedKVCacheImpl::AppendKV(int32_t layer, const KVRows& k, const KVRows& v) {
  const StepPlan& plan = table_.plan();
  WriteSlotsCpu(page_shape_, DataPointer(pages_[layer].operator->()), plan.slots.data(),
                plan.num_rows(), k, v);
}

void PagedKVCacheImpl::Attend(int32_t layer, const void* q, DType dtype, int64_t q_row_stride,
                              const Tensor& out, double sm_scale, const AttentionOptions& options) {
  const StepPlan& plan = table_.plan();
  AttentionArgs args;
  args.q = q;
  args.q_dtype = dtype;
  args.q_row_stride = q_row_stride;
  args.num_qo_heads = static_cast<int32_t>(config_.num_qo_heads);
  args.pages = DataPointer(pages_[layer].operator->());
  args.kv_dtype = page_shape_.dtype;
  args.num_kv_heads = page_shape_.num_kv_heads;
  args.page_size = page_shape_.page_size;
  args.head_dim = page_shape_.head_dim;
  args.sequences = plan.sequences.data();
  args.num_sequences = static_cast<int32_t>(plan.sequences.size());
  args.masks = masks_.layer(layer);
  args.out = DataPointer(out.operator->());
  args.out_dtype = FloatDType(out.DataType(), "the attention output");
  args.out_row_stride = config_.num_qo_heads * config_.head_dim;
  args.sm_scale = static_cast<float>(sm_scale);
  args.workspace = &workspace_;
  args.soft_cap = static_cast<float>(options.soft_cap);
  args.alibi_slopes = PerHead(options.alibi_slopes, "alibi_slopes", {config_.num_qo_heads});
  args.sinks = PerHead(options.sinks, "sinks", {config_.num_qo_heads});
  args.lse = PerHead(options.lse, "lse", {plan.num_rows(), config_.num_qo_heads});
  if (select_.has_value()) {
    SelectPages(layer, q, dtype, q_row_stride);
    args.sequences = selected_.data();
  }
  AttentionCpu(args);
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

PagedKVCacheImpl::Tensor PagedKVCacheImpl::RotaryScratch(Tensor* buffer, int64_t num_heads,
                                                         DLDataType dtype) {
  if (!buffer->defined() || buffer->DataType() != dtype) {
    *buffer = Tensor::Empty({config_.prefill_chunk_size, num_heads, config_.head_dim}, dtype,
                            config_.device);
  }
  return buffer->CreateView({table_.plan().num_rows(), num_heads, config_.head_dim}, dtype);
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
  InTurn([&] {
    if (!table_.in_forward()) {
      Throw(ErrorKind::kRuntime,
            "attention is only possible between begin_forward and end_forward");
    }
    const int32_t layer = LocalLayer(layer_id);
    const int64_t qo_heads = config_.num_qo_heads, kv_heads = config_.num_kv_heads;
    const int64_t head_dim = config_.head_dim, num_heads = qo_heads + 2 * kv_heads;
    CheckTensor(qkv.operator->(), "qkv", config_.device, {kAnyExtent, num_heads, head_dim});
    CheckTensor(out.operator->(), "the attention output", config_.device,
                {qkv->shape[0], qo_heads, head_dim});
    const int64_t num_rows = table_.plan().num_rows();
    if (qkv->shape[0] < num_rows) {
      Throw(ErrorKind::kValue, "qkv has ", qkv->shape[0], " rows and the step has ", num_rows,
            " new tokens");
    }
    const DType dtype = FloatDType(qkv.DataType(), "qkv");
    const int64_t stride = num_heads * head_dim;
    char* fused = static_cast<char*>(DataPointer(qkv.operator->()));
    char* fused_k = fused + qo_heads * head_dim * DTypeSize(dtype);
    KVRows v{fused_k + kv_heads * head_dim * DTypeSize(dtype), dtype, stride};

    if (config_.split_rotary.has_value()) {
      Tensor q_rows = RotaryScratch(&q_, qo_heads, qkv.DataType());
      Tensor k_rows = RotaryScratch(&k_, kv_heads, qkv.DataType());
      Tensor v_rows = RotaryScratch(&v_, kv_heads, qkv.DataType());
      Tensor rows = qkv.CreateView({num_rows, num_heads, head_dim}, qkv.DataType());
      Tensor positions = positions_.CreateView({num_rows}, {kDLInt, 32, 1});
      if (config_.rope_ext_factors.has_value()) {
        config_.split_rotary.value()(rows, positions, q_rows, k_rows, v_rows,
                                     config_.rope_ext_factors.value());
      } else {
        config_.split_rotary.value()(rows, positions, q_rows, k_rows, v_rows,
                                     static_cast<int64_t>(config_.rope_mode == RopeMode::kNormal));
      }
      AppendKV(layer, {DataPointer(k_rows.operator->()), dtype, kv_heads * head_dim},
               {DataPointer(v_rows.operator->()), dtype, kv_heads * head_dim});
      Attend(layer, DataPointer(q_rows.operator->()), dtype, qo_heads * head_dim, out, sm_scale,
             options);
    } else if (rope_ != nullptr) {
      Tensor q_rows = RotaryScratch(&q_, qo_heads, qkv.DataType());
      Tensor k_rows = RotaryScratch(&k_, kv_heads, qkv.DataType());
      void* q_data = DataPointer(q_rows.operator->());
      void* k_data = DataPointer(k_rows.operator->());
      RopeCpu(*rope_, dtype, qo_heads, head_dim, fused, stride, q_data, qo_heads * head_dim);
      RopeCpu(*rope_, dtype, kv_heads, head_dim, fused_k, stride, k_data, kv_heads * head_dim);
      AppendKV(layer, {k_data, dtype, kv_heads * head_dim}, v);
      Attend(layer, q_data, dtype, qo_heads * head_dim, out, sm_scale, options);
    } else {
      AppendKV(layer, {fused_k, dtype, stride}, v);
      Attend(layer, fused, dtype, stride, out, sm_scale, options);
    }
  });
}

}  // namespace kvctl
