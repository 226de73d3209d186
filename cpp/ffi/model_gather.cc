// "kvctl.model.gather_columns": columns that several workers computed become whole rows on each.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <algorithm>
#include <vector>

#include "ffi/model_arguments.h"
#include "kvctl/error.h"
#include "runtime/support/guard.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::ffi::Tensor;

/*! \brief Memory that somebody else frees. */
struct Borrowed {
  void* data;
  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) {}
};

/*! \brief At least so many floats of the calling thread, kept for its next gather. */
float* GatheredParts(int64_t count) {
  thread_local std::vector<float> kept;
  if (static_cast<int64_t>(kept.size()) < count) kept.resize(static_cast<size_t>(count));
  return kept.data();
}

/*! \brief Checks how many columns each worker gives; returns whether all give what they have. */
bool CheckColumns(const TensorView& columns, int64_t local, int64_t whole) {
  constexpr DLDataType kInt64{kDLInt, 64, 1};
  CheckTensor(columns, kInt64, 1, "columns");
  const auto* counts = Data<const int64_t>(columns);
  int64_t total = 0;
  bool all = true;
  for (int64_t worker = 0; worker < columns.numel(); ++worker) {
    if (counts[worker] < 0 || counts[worker] > local) {
      Throw(ErrorKind::kValue, "a worker has ", local, " columns, and columns[", worker, "] is ",
            counts[worker]);
    }
    total += counts[worker];
    all = all && counts[worker] == local;
  }
  if (total != whole) {
    Throw(ErrorKind::kValue, "out must have the ", total, " columns of all workers, not ", whole);
  }
  return all;
}

void Gather(const Tensor& x, const TensorView& columns, const TensorView* residual,
            const Tensor& out) {
  CheckTensor(x, kFloat32, 1, "x");
  CheckTensor(out, kFloat32, 1, "out");
  const Rows local = RowsOf(x), whole = RowsOf(out);
  CheckRows(out, local.rows, whole.cols, "out");
  if (residual != nullptr) CheckRows(*residual, whole.rows, whole.cols, "residual");
  const bool all = CheckColumns(columns, local.cols, whole.cols);
  const auto gather = ffi::Function::GetGlobal("runtime.disco.allgather");
  if (!gather.has_value()) {
    Throw(ErrorKind::kRuntime, "TVM's Disco is not loaded, which joins the columns of workers");
  }
  constexpr bool kInGroup = true;
  if (all && local.rows == 1 && residual == nullptr) {  // the parts of one row are that row
    (*gather)(x, kInGroup, out);
    return;
  }
  const int64_t workers = columns.numel();
  const float* parts = GatheredParts(workers * x.numel());
  (*gather)(
      x, kInGroup,
      Tensor::FromNDAlloc(Borrowed{const_cast<float*>(parts)},
                          ffi::Shape({workers, local.rows, local.cols}), kFloat32, x.device()));
  const auto* counts = Data<const int64_t>(columns);
  const float* addend = residual == nullptr ? nullptr : Data<const float>(*residual);
  float* to = Data<float>(out);
  for (int64_t row = 0; row < local.rows; ++row) {
    for (int64_t worker = 0; worker < workers; ++worker) {
      const float* from = parts + (worker * local.rows + row) * local.cols;
      const int64_t count = counts[worker];
      if (addend == nullptr) {
        std::copy_n(from, count, to);
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] = from[i] + addend[i];
        addend += count;
      }
      to += count;
    }
  }
}

void GatherColumnsOp(const Tensor& x, const TensorView& columns, const Tensor& out) {
  Gather(x, columns, nullptr, out);
}

void GatherColumnsAddOp(const Tensor& x, const TensorView& columns, const TensorView& residual,
                        const Tensor& out) {
  Gather(x, columns, &residual, out);
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef()
      .def("kvctl.model.gather_columns", Guarded(GatherColumnsOp),
           "out = the first columns[i] columns of each worker i's x, side by side, on all workers")
      .def("kvctl.model.gather_columns_add", Guarded(GatherColumnsAddOp),
           "out = what gather_columns gives + residual");
}

}  // namespace kvctl
