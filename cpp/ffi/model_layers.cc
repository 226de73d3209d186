// "kvctl.model.*": what models beyond Llama call between their linear layers.
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>

#include <cmath>

#include "core/support/narrow.h"
#include "ffi/model_arguments.h"
#include "kernels/layers/activation.h"
#include "kernels/layers/elementwise.h"
#include "kernels/layers/layer_norm.h"
#include "kernels/layers/qk_norm.h"
#include "kernels/rope.h"
#include "kvctl/error.h"
#include "kvctl/paged_kv_cache.h"
#include "runtime/support/guard.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;

float CheckedEpsilon(double epsilon) {
  if (!(epsilon >= 0.0) || !std::isfinite(epsilon)) {
    Throw(ErrorKind::kValue, "epsilon must be finite and not negative, not ", epsilon);
  }
  return static_cast<float>(epsilon);
}

void LayerNormOp(const TensorView& x, const TensorView& weight, const TensorView& bias,
                 double epsilon, const TensorView& out) {
  CheckTensor(x, kFloat32, 1, "x");
  const Rows shape = RowsOf(x);
  CheckRows(weight, 1, shape.cols, "weight");
  CheckRows(bias, 1, shape.cols, "bias");
  CheckRows(out, shape.rows, shape.cols, "out");
  LayerNorm(Data<const float>(x), Data<const float>(weight), Data<const float>(bias), shape.rows,
            shape.cols, CheckedEpsilon(epsilon), Data<float>(out));
}

NormedColumns Columns(const TensorView& weight, int64_t cols, const char* name) {
  CheckTensor(weight, kFloat32, 1, name);
  const int64_t group = weight.numel();
  if (group < 1 || cols < 0 || cols % group != 0) {
    Throw(ErrorKind::kValue, name, " has ", group, " elements, which do not divide ", cols,
          " columns");
  }
  return {cols, group, Data<const float>(weight)};
}

/*! \brief qkv (..., cols): the first q_cols and the next k_cols are normalised. */
void QkNormOp(const TensorView& qkv, const TensorView& q_weight, const TensorView& k_weight,
              int64_t q_cols, int64_t k_cols, double epsilon, const TensorView& out) {
  CheckTensor(qkv, kFloat32, 1, "qkv");
  const Rows shape = RowsOf(qkv);
  CheckRows(out, shape.rows, shape.cols, "out");
  const NormedColumns q = Columns(q_weight, q_cols, "q_weight");
  const NormedColumns k = Columns(k_weight, k_cols, "k_weight");
  if (q_cols + k_cols > shape.cols) {
    Throw(ErrorKind::kValue, "qkv has ", shape.cols, " columns, fewer than q's ", q_cols,
          " and k's ", k_cols);
  }
  QkNorm(Data<const float>(qkv), shape.rows, shape.cols, q, k, CheckedEpsilon(epsilon),
         Data<float>(out));
}

void AddBiasOp(const TensorView& x, const TensorView& bias, const TensorView& out) {
  CheckTensor(x, kFloat32, 1, "x");
  const Rows shape = RowsOf(x);
  CheckRows(bias, 1, shape.cols, "bias");
  CheckRows(out, shape.rows, shape.cols, "out");
  AddBias(Data<const float>(x), Data<const float>(bias), shape.rows, shape.cols, Data<float>(out));
}

void SoftCapOp(const TensorView& x, double cap, const TensorView& out) {
  const int64_t count = CheckSameSize(x, out);
  if (!(cap > 0) || !std::isfinite(cap)) {
    Throw(ErrorKind::kValue, "cap must be finite and positive, not ", cap);
  }
  SoftCap(Data<const float>(x), count, static_cast<float>(cap), Data<float>(out));
}

void ScaleOp(const TensorView& x, double factor, const TensorView& out) {
  const int64_t count = CheckSameSize(x, out);
  ScaleAdd(Data<const float>(x), count, static_cast<float>(factor), nullptr, Data<float>(out));
}

void ScaleAddOp(const TensorView& x, double factor, const TensorView& addend,
                const TensorView& out) {
  const int64_t count = CheckSameSize(x, out);
  CheckSameSize(addend, out);
  ScaleAdd(Data<const float>(x), count, static_cast<float>(factor), Data<const float>(addend),
           Data<float>(out));
}

void ActivateOp(const TensorView& x, const ffi::String& name, const TensorView& out) {
  const int64_t count = CheckSameSize(x, out);
  Activate(Data<const float>(x), count, ActivationOf(std::string(name)), Data<float>(out));
}

void GatedActivateOp(const TensorView& gate_up, const ffi::String& name, const TensorView& out) {
  CheckTensor(gate_up, kFloat32, 1, "gate_up");
  const Rows shape = RowsOf(gate_up);
  if (shape.cols % 2 != 0) {
    Throw(ErrorKind::kValue, "gate_up must hold two halves, not ", shape.cols, " columns");
  }
  CheckRows(out, shape.rows, shape.cols / 2, "out");
  GatedActivate(Data<const float>(gate_up), shape.rows, shape.cols / 2,
                ActivationOf(std::string(name)), Data<float>(out));
}

/*! \brief positions (rows,) int32, frequencies (half,) float64 -> (rows, 2 * half) float32. */
void RopeTableOp(const TensorView& positions, const TensorView& frequencies, double factor,
                 const TensorView& out) {
  constexpr DLDataType kFloat64{kDLFloat, 64, 1};
  CheckTensor(positions, kInt32, 1, "positions");
  CheckTensor(frequencies, kFloat64, 1, "frequencies");
  const int64_t half = frequencies.numel();
  CheckRows(out, positions.numel(), 2 * half, "out");
  FillRopeTableCpu(Data<const int32_t>(positions), Narrow(positions.numel(), "rows"),
                   Data<const double>(frequencies), Narrow(half, "frequencies"), factor,
                   Data<float>(out));
}

/*! \brief qkv (rows, heads, head_dim), table (rows, rotary_dim): the first `rotated` heads. */
void RotateOp(const TensorView& qkv, const TensorView& table, int64_t rotated,
              const TensorView& out) {
  CheckTensor(qkv, kFloat32, 3, "qkv");
  CheckTensor(table, kFloat32, 2, "table");
  CheckSameSize(qkv, out);
  const RotatedHeads heads{qkv.size(0), qkv.size(1), rotated, qkv.size(2)};
  const int64_t rotary_dim = table.size(1);
  CheckRows(table, heads.rows, rotary_dim, "table");
  if (rotated < 0 || rotated > heads.num_heads || rotary_dim > heads.head_dim ||
      rotary_dim % 2 != 0) {
    Throw(ErrorKind::kValue, "cannot rotate ", rotary_dim, " elements of ", rotated, " heads in ",
          heads.num_heads, " heads of ", heads.head_dim);
  }
  RotateHeadsCpu(Data<const float>(table), Narrow(rotary_dim, "rotary_dim"), heads,
                 Data<const float>(qkv), Data<float>(out));
}

/*! \brief Attention with a soft cap, into a tensor of the model's. */
void AttentionOp(const PagedKVCache& cache, int64_t layer, const tvm::runtime::Tensor& qkv,
                 double sm_scale, double soft_cap, const tvm::runtime::Tensor& out) {
  if (!(soft_cap > 0) || !std::isfinite(soft_cap)) {
    Throw(ErrorKind::kValue, "soft_cap must be finite and positive, not ", soft_cap);
  }
  AttentionOptions options;
  options.soft_cap = soft_cap;
  cache->Attention(layer, qkv, out, sm_scale, options);
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef()
      .def("kvctl.model.layer_norm", Guarded(LayerNormOp), "out = LayerNorm(x) * weight + bias")
      .def("kvctl.model.qk_norm", Guarded(QkNormOp), "RMSNorm of q and k in fused rows")
      .def("kvctl.model.add_bias", Guarded(AddBiasOp), "out = x + bias")
      .def("kvctl.model.soft_cap", Guarded(SoftCapOp), "out = cap * tanh(x / cap)")
      .def("kvctl.model.scale", Guarded(ScaleOp), "out = x * factor")
      .def("kvctl.model.scale_add", Guarded(ScaleAddOp), "out = x * factor + addend")
      .def("kvctl.model.activate", Guarded(ActivateOp), "out = activation(x)")
      .def("kvctl.model.gated_activate", Guarded(GatedActivateOp),
           "out = activation(first half) * second half")
      .def("kvctl.model.rope_table", Guarded(RopeTableOp), "Cosines and sines of positions")
      .def("kvctl.model.rotate", Guarded(RotateOp), "Rotate the first heads of each row")
      .def("kvctl.model.attention", Guarded(AttentionOp), "Attention with a soft cap on scores");
}

}  // namespace kvctl
