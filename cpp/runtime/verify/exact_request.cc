// What a request says exactly, without random numbers: outcomes, last nodes, distributions.
#include <algorithm>
#include <vector>

#include "core/verify/enumerate.h"
#include "kernels/sampling.h"
#include "kvctl/error.h"
#include "runtime/support/tensor_view.h"
#include "runtime/verify/request_arrays.h"
#include "runtime/verify/verify_request.h"

namespace kvctl {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

ffi::Bytes EnumerateBatch(const VerifyRequest& request, bool check) {
  BatchArrays arrays = ArraysOf(*request.get(), RowTensorsOf(*request.get()));
  const VocabContext vocab(static_cast<int32_t>(arrays.vocab_size));
  const std::vector<VerifyItem> items = MakeItems(&arrays);
  std::vector<double> outcomes;
  for (size_t b = 0; b < items.size(); ++b) {
    for (const auto& [p, outcome] : Enumerate(arrays.rule, vocab, items[b].input, check)) {
      outcomes.insert(outcomes.end(), {static_cast<double>(b), static_cast<double>(outcome.node),
                                       static_cast<double>(outcome.bonus), p});
    }
  }
  return ffi::Bytes(reinterpret_cast<const char*>(outcomes.data()),
                    outcomes.size() * sizeof(double));
}

void LastAcceptedBatch(const VerifyRequest& request, bool check, const Tensor& out) {
  BatchArrays arrays = ArraysOf(*request.get(), RowTensorsOf(*request.get()));
  auto* probabilities = TensorData<double>(out, "out", {NumNodes(arrays.trees)});
  const VocabContext vocab(static_cast<int32_t>(arrays.vocab_size), CpuVocabOps());
  for (const VerifyItem& item : MakeItems(&arrays)) {
    const std::vector<double> last = LastAccepted(arrays.rule, vocab, item.input, check);
    probabilities = std::copy(last.begin(), last.end(), probabilities);
  }
}

void TargetProbsBatch(const VerifyRequest& request, bool lenient, const Tensor& out) {
  RowTensors tensors = RowTensorsOf(*request.get());
  MoveToHost(&tensors);
  BatchArrays arrays = ArraysOf(*request.get(), tensors);
  const auto size = static_cast<int32_t>(arrays.vocab_size);
  auto* row = TensorData<double>(out, "out", {NumNodes(arrays.trees), size});
  const VocabContext vocab(size, CpuVocabOps());
  TreeVerifier verifier(vocab);
  Distribution distribution;
  int64_t sequence = 0;
  for (const VerifyItem& item : MakeItems(&arrays)) {
    verifier.Start(item.input);
    std::vector<bool> ended(item.input.size, false);
    for (int32_t node = 0; node < item.input.size; ++node, row += size) {
      std::fill_n(row, size, 0.0);
      ended[node] = verifier.ends_at(node) || (node > 0 && ended[item.input.parents[node]]);
      if (ended[node]) continue;
      try {
        verifier.Target(node).FillDistribution(&distribution);
      } catch (const Error& error) {
        if (lenient) continue;
        Throw(error.kind(), "sequence ", sequence, ": ", error.what());
      }
      for (int32_t x = 0; x < size; ++x) row[x] = distribution.prob(x);
    }
    ++sequence;
  }
}

}  // namespace kvctl
