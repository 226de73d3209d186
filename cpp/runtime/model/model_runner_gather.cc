// The logits of several workers as one.
#include <algorithm>

#include "kvctl/error.h"
#include "kvctl/model_runner.h"
#include "runtime/model/row_tensors.h"

namespace kvctl {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

Tensor ModelRunner::GatherLogits(const Tensor& local) const {
  if (logit_columns_ == vocab_size_) return local;
  if (local->ndim != 2 || local->shape[1] != logit_columns_) {
    Throw(ErrorKind::kValue, "the logits of a worker are (rows, ", logit_columns_, "), not ",
          ffi::Shape(local->shape, local->shape + local->ndim));
  }
  const auto gather = ffi::Function::GetGlobal("runtime.disco.gather_to_worker0");
  if (!gather.has_value()) {
    Throw(ErrorKind::kRuntime, "TVM's Disco is not loaded, which joins the logits of workers");
  }
  const int64_t rows = local->shape[0];
  if (shard_ != 0) {
    (*gather)(local, true, nullptr);
    return local;
  }
  Tensor parts = Tensor::Empty({num_shards_, rows, logit_columns_}, local->dtype, local->device);
  (*gather)(local, true, parts);
  Tensor all = Tensor::Empty({rows, vocab_size_}, local->dtype, local->device);
  for (int64_t worker = 0; worker < num_shards_; ++worker) {
    const int64_t begin = worker * logit_columns_;
    const int64_t count = std::min(logit_columns_, vocab_size_ - begin);
    for (int64_t row = 0; row < rows && count > 0; ++row) {
      CopyElements(parts, (worker * rows + row) * logit_columns_, count, all,
                   row * vocab_size_ + begin);
    }
  }
  return all;
}

}  // namespace kvctl
