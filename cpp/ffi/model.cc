// "kvctl.model.*": the layers that models compiled for the CPU call from their graph.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>

#include <cmath>
#include <new>
#include <string>

#include "ffi/model_arguments.h"
#include "kernels/isa.h"
#include "kernels/layers/activation.h"
#include "kernels/layers/embed.h"
#include "kernels/layers/rms_norm.h"
#include "kernels/linear.h"
#include "kernels/packed_memory.h"
#include "kernels/quantized_blocks.h"
#include "kvctl/error.h"
#include "runtime/support/guard.h"

namespace kvctl {
namespace {

using tvm::ffi::Tensor;
using tvm::ffi::TensorView;

/*! \brief Tensors of packed weights. */
struct PackedAllocator {
  void AllocData(DLTensor* tensor) {
    tensor->data = NewPackedMemory(tvm::ffi::GetDataSize(*tensor));
  }
  void FreeData(DLTensor* tensor) { FreePackedMemory(tensor->data); }
};

/*! \brief Tensors of blocks, which do not last: memory between packed weights would stay in use. */
struct BlockAllocator {
  static constexpr std::align_val_t kAlignment{64};
  void AllocData(DLTensor* tensor) {
    tensor->data = ::operator new(tvm::ffi::GetDataSize(*tensor), kAlignment);
  }
  void FreeData(DLTensor* tensor) { ::operator delete(tensor->data, kAlignment); }
};

Tensor PackAs(const TensorView& weight, WeightType type) {
  CheckTensor(weight, kFloat32, 2, "weight");
  const Rows shape = RowsOf(weight);
  const LinearBackend backend = ChooseLinearBackend(type);
  const int64_t bytes =
      static_cast<int64_t>(PackedLinearBytes(shape.rows, shape.cols, type, backend));
  Tensor packed =
      Tensor::FromNDAlloc(PackedAllocator(), tvm::ffi::Shape({bytes}), kBytes, weight.device());
  PackLinear(Data<const float>(weight), shape.rows, shape.cols, type, backend, packed.data_ptr());
  return packed;
}

Tensor PackFloat32(const TensorView& weight) { return PackAs(weight, WeightType::kFloat32); }
Tensor PackBFloat16(const TensorView& weight) { return PackAs(weight, WeightType::kBFloat16); }

/*! \brief The type of weights whose blocks have this many bytes. */
WeightType TypeOfBlocks(int64_t bytes) {
  for (WeightType type :
       {WeightType::kInt8, WeightType::kInt4, WeightType::kInt4Offset, WeightType::kInt8Parts}) {
    if (bytes == BlockBytes(type)) return type;
  }
  Throw(ErrorKind::kValue, "a block of quantized weights must have ", BlockBytes(WeightType::kInt8),
        " bytes (int8), ", BlockBytes(WeightType::kInt4), " (int4), ",
        BlockBytes(WeightType::kInt4Offset), " (int4 with an offset) or ",
        BlockBytes(WeightType::kInt8Parts), " (int8 with two scales and an offset), not ", bytes);
}

Tensor Quantize(const TensorView& weight, int64_t bits) {
  CheckTensor(weight, kFloat32, 2, "weight");
  if (bits != 8 && bits != 4) Throw(ErrorKind::kValue, "bits must be 8 or 4, not ", bits);
  const WeightType type = bits == 8 ? WeightType::kInt8 : WeightType::kInt4;
  const Rows shape = RowsOf(weight);
  PackedLinearBytes(shape.rows, shape.cols, type, LinearBackend::kOwn);  // checks the shape
  const int64_t blocks = shape.cols / kBlockInputs;
  Tensor quantized =
      Tensor::FromNDAlloc(BlockAllocator(), tvm::ffi::Shape({shape.rows, blocks, BlockBytes(type)}),
                          kBytes, weight.device());
  QuantizeBlocks(Data<const float>(weight), shape.rows * shape.cols, type,
                 static_cast<uint8_t*>(quantized.data_ptr()));
  return quantized;
}

Tensor PackQuantized(const TensorView& blocks) {
  CheckTensor(blocks, kBytes, 3, "blocks");
  const WeightType type = TypeOfBlocks(blocks.size(2));
  const int64_t n = blocks.size(0), k = blocks.size(1) * kBlockInputs;
  const int64_t bytes = static_cast<int64_t>(PackedLinearBytes(n, k, type, LinearBackend::kOwn));
  Tensor packed =
      Tensor::FromNDAlloc(PackedAllocator(), tvm::ffi::Shape({bytes}), kBytes, blocks.device());
  PackBlocks(Data<const uint8_t>(blocks), n, k, type, packed.data_ptr());
  return packed;
}

void Multiply(const TensorView& x, const TensorView& packed, const TensorView* residual,
              const TensorView& out) {
  CheckTensor(packed, kBytes, 1, "packed");
  CheckTensor(x, kFloat32, 1, "x");
  const PackedLinearInfo info =
      InspectPackedLinear(Data<const void>(packed), static_cast<size_t>(packed.numel()));
  const int64_t rows = RowsOf(x).rows;
  CheckRows(x, rows, info.k, "x");
  CheckRows(out, rows, info.n, "out");
  if (residual != nullptr) CheckRows(*residual, rows, info.n, "residual");
  Linear(Data<const float>(x), rows, Data<const void>(packed),
         residual == nullptr ? nullptr : Data<const float>(*residual), Data<float>(out));
}

void LinearOp(const TensorView& x, const TensorView& packed, const TensorView& out) {
  Multiply(x, packed, nullptr, out);
}

void LinearAddOp(const TensorView& x, const TensorView& packed, const TensorView& residual,
                 const TensorView& out) {
  Multiply(x, packed, &residual, out);
}

void RmsNormOp(const TensorView& x, const TensorView& weight, double epsilon,
               const TensorView& out) {
  CheckTensor(x, kFloat32, 1, "x");
  const Rows shape = RowsOf(x);
  CheckRows(weight, 1, shape.cols, "weight");
  CheckRows(out, shape.rows, shape.cols, "out");
  if (!(epsilon >= 0.0) || !std::isfinite(epsilon)) {
    Throw(ErrorKind::kValue, "epsilon must be finite and not negative, not ", epsilon);
  }
  RmsNorm(Data<const float>(x), Data<const float>(weight), shape.rows, shape.cols,
          static_cast<float>(epsilon), Data<float>(out));
}

void SiluMulOp(const TensorView& gate_up, const TensorView& out) {
  CheckTensor(gate_up, kFloat32, 1, "gate_up");
  const Rows shape = RowsOf(gate_up);
  if (shape.cols % 2 != 0) {
    Throw(ErrorKind::kValue, "gate_up must hold two halves, not ", shape.cols, " columns");
  }
  CheckRows(out, shape.rows, shape.cols / 2, "out");
  SiluMul(Data<const float>(gate_up), shape.rows, shape.cols / 2, Data<float>(out));
}

void TakeRowsOp(const TensorView& table, const TensorView& indices, const TensorView& out) {
  CheckTensor(table, kFloat32, 2, "table");
  CheckTensor(indices, kInt32, 1, "indices");
  const Rows shape = RowsOf(table);
  CheckRows(out, indices.numel(), shape.cols, "out");
  TakeRows(Data<const float>(table), shape.rows, shape.cols, Data<const int32_t>(indices),
           indices.numel(), Data<float>(out));
}

/*! \brief Who multiplies float32 weights packed from now on, for doctor and for benchmarks. */
tvm::ffi::String Backend() {
  if (ChooseLinearBackend(WeightType::kFloat32) == LinearBackend::kOneDNN) return "onednn";
  return std::string("own ") + IsaName(CpuIsa());
}

/*! \brief Which kernels multiply weights of a type, "NAME from N rows on", for doctor. */
tvm::ffi::Array<tvm::ffi::String> Kernels(const tvm::ffi::String& dtype) {
  constexpr const char* kNames[] = {"float32", "bfloat16",    "int8",
                                    "int4",    "int4_offset", "int8_parts"};
  for (int type = 0; type < 6; ++type) {
    if (std::string(dtype) != kNames[type]) continue;
    tvm::ffi::Array<tvm::ffi::String> texts;
    for (const LinearKernel& kernel : LinearKernels(static_cast<WeightType>(type))) {
      texts.push_back(std::string(kernel.name) + " from " + std::to_string(kernel.rows) +
                      (kernel.rows == 1 ? " row on" : " rows on"));
    }
    return texts;
  }
  Throw(ErrorKind::kValue,
        "dtype must be float32, bfloat16, int8, int4, int4_offset or int8_parts, not '",
        std::string(dtype), "'");
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef()
      .def("kvctl.model.pack_linear", Guarded(PackFloat32),
           "Pack a float32 (outputs, inputs) weight for this machine")
      .def("kvctl.model.pack_linear_bf16", Guarded(PackBFloat16),
           "Pack a float32 (outputs, inputs) weight for this machine, rounded to bfloat16")
      .def("kvctl.model.quantize", Guarded(Quantize),
           "Quantise a float32 (outputs, inputs) weight to (outputs, inputs / 32, bytes) blocks of "
           "8 or 4 bits")
      .def("kvctl.model.pack_quantized", Guarded(PackQuantized),
           "Pack (outputs, inputs / 32, bytes) blocks for this machine")
      .def("kvctl.model.backend", Guarded(Backend),
           "Who multiplies float32 weights: \"onednn\", or \"own\" and the instruction set")
      .def("kvctl.model.get_kernels", Guarded(Kernels),
           "Which kernels multiply weights of a type, and from how many rows on")
      .def("kvctl.model.linear", Guarded(LinearOp), "out = x Wᵀ")
      .def("kvctl.model.linear_add", Guarded(LinearAddOp), "out = x Wᵀ + residual")
      .def("kvctl.model.rms_norm", Guarded(RmsNormOp), "out = RMSNorm(x) * weight")
      .def("kvctl.model.silu_mul", Guarded(SiluMulOp), "out = SiLU(first half) * second half")
      .def("kvctl.model.take_rows", Guarded(TakeRowsOp), "out[i] = table[indices[i]]");
}

}  // namespace kvctl
