// "kvctl.verify.*": acceptance rules, sampling and drafting over batches of rows.
#include "core/verify/verify.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>
#include <tvm/runtime/tensor.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "core/verify/draft.h"
#include "core/verify/enumerate.h"
#include "ffi/verify_args.h"
#include "kernels/sampling.h"
#include "runtime/support/device.h"
#include "runtime/support/guard.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using ffi::TensorView;

/*! \brief The arguments of Run. */
struct RunArgs {
  int64_t rule;
  int64_t noise;
  TensorView target;
  int64_t probabilities;
  TensorView nodes;
  TensorView ptrs;
  MaybeTensor draft_probs;
  MaybeTensor draft_ids;
  int64_t per_node;
  TensorView sampling;
  MaybeTensor bias_ptr;
  MaybeTensor bias_ids;
  MaybeTensor bias_values;
  MaybeTensor stop_ptr;
  MaybeTensor stop_ids;
  MaybeTensor history_ptr;
  MaybeTensor history_ids;
  MaybeTensor bitmask;
  double epsilon;
  double delta;
  int64_t seed;
  TensorView streams;
  TensorView out;
  MaybeTensor out_log_probs;

  /*!
   * \brief Decides on the CPU, or with `cuda` on the device of the target.
   * \return false if the call is none for the device.
   */
  bool Decide(CudaVerify* cuda) const;
};

bool RunArgs::Decide(CudaVerify* cuda) const {
  const bool plain = probabilities == 0 && !draft_ids.has_value() && !bitmask.has_value();
  if (cuda != nullptr && !plain) return false;
  const auto rule_kind = static_cast<Rule>(InRange(rule, 0, kNumRules - 1, "rule"));
  VerifyBatch batch(target, probabilities != 0, nodes, ptrs);
  batch.SetDraft(draft_probs, draft_ids, per_node != 0);
  batch.SetSampling(sampling, bias_ptr, bias_ids, bias_values);
  batch.SetThresholds(epsilon, delta);
  batch.SetHistory(history_ptr, history_ids);
  batch.SetBitmask(bitmask);

  const int64_t size = batch.size(), num_nodes = batch.num_nodes();
  const int64_t* stream = Data<int64_t>(streams, "streams", {2, size});
  const Ragged<int32_t> stops(stop_ptr, stop_ids, "stop", batch.num_samplings());
  int32_t* nodes_out = MutableData<int32_t>(out, "out", {2 * num_nodes + 4 * size});
  int32_t* tokens_out = nodes_out + num_nodes;
  int32_t* counts_out = tokens_out + num_nodes;
  double* log_probs_out =
      out_log_probs.has_value()
          ? MutableData<double>(out_log_probs.value(), "out_log_probs", {num_nodes})
          : nullptr;
  std::vector<VerifyItem> items(size);
  for (int64_t b = 0; b < size; ++b) {
    VerifyItem& item = items[b];
    const int64_t s = batch.num_samplings() == 1 ? 0 : b;
    const int64_t at = batch.node_begin(b);
    item.input = batch.input(b);
    item.stream = {static_cast<uint64_t>(seed), static_cast<uint64_t>(stream[b])};
    item.root_position = RootPosition(stream[size + b], b, -1);
    const Drawn* drawn_end = item.input.drawn + item.input.size;
    const bool coupled = noise != 0 || rule_kind == Rule::kCoupled ||
                         std::find(item.input.drawn + 1, drawn_end, Drawn::kCoupled) != drawn_end;
    item.noise = coupled ? Noise::kGumbel : Noise::kUniform;
    item.stop_tokens = stops.begin(s);
    item.num_stop_tokens = static_cast<int32_t>(stops.end(s) - stops.begin(s));
    item.nodes = nodes_out + at;
    item.tokens = tokens_out + at;
    item.log_probs = log_probs_out == nullptr ? nullptr : log_probs_out + at;
  }
  if (cuda == nullptr) {
    VerifyItems(rule_kind, batch.vocab_size(), ShareItemsAmongThreads, &items);
  } else if (!cuda->Verify(rule_kind, batch.vocab_size(), &items, CurrentStream(target.device()))) {
    return false;
  }
  for (int64_t b = 0; b < size; ++b) {
    counts_out[b] = items[b].num_nodes;
    counts_out[size + b] = items[b].num_tokens;
    counts_out[2 * size + b] = items[b].bonus;
    counts_out[3 * size + b] = items[b].finished;
  }
  return true;
}

/*! \brief A tensor's contents on the host; itself where it has none. */
ffi::Tensor OnHost(const TensorView& tensor, const char* name, CudaVerify* cuda) {
  if (!tensor.IsContiguous()) Throw(ErrorKind::kValue, name, " must be contiguous");
  const tvm::runtime::Tensor copy = tvm::runtime::Tensor::Empty(
      ffi::Shape(tensor.shape().begin(), tensor.shape().end()), tensor.dtype(), kHostDevice);
  cuda->CopyToHost(copy->data, Pointer(tensor), ffi::GetDataSize(*copy.operator->()),
                   CurrentStream(tensor.device()));
  return copy;
}

/*!
 * \brief Verifies a batch. Sequence b has nodes [node_ptr[b], node_ptr[b + 1]) and rows from
 * row_ptr[b].
 *
 * \param target (rows, vocab) logits, or probabilities where `probabilities` is set.
 * \param nodes (4, N) int32: token, parent, row, Drawn of each node.
 * \param ptrs (2, B + 1) int64: node_ptr and row_ptr.
 * \param draft_probs (rows or N, width), None where every node is deterministic or coupled.
 * \param draft_ids (rows or N, width) int32, for sparse rows.
 * \param sampling (1 or B, 7) float64, see SamplingTable; lists as (ptr, values) over the same
 * rows.
 * \param bitmask (N, ceil(vocab / 32)) int32.
 * \param noise 1 samples by Gumbel noise, as trees with coupled nodes and rule coupled do anyway.
 * \param streams (2, B) int64: request id, root position.
 * \param epsilon, delta thresholds of rule typical.
 * \param out (2 N + 4 B) int32: accepted nodes and emitted tokens, (N) each, sequence b's from
 * node_ptr[b]; then, (B) each, the numbers of both, the bonus, and whether it is finished.
 * \param out_log_probs (N) float64, or None.
 */
void Run(int64_t rule, int64_t noise, TensorView target, int64_t probabilities, TensorView nodes,
         TensorView ptrs, MaybeTensor draft_probs, MaybeTensor draft_ids, int64_t per_node,
         TensorView sampling, MaybeTensor bias_ptr, MaybeTensor bias_ids, MaybeTensor bias_values,
         MaybeTensor stop_ptr, MaybeTensor stop_ids, MaybeTensor history_ptr,
         MaybeTensor history_ids, MaybeTensor bitmask, double epsilon, double delta, int64_t seed,
         TensorView streams, TensorView out, MaybeTensor out_log_probs) {
  RunArgs args{rule,        noise,     target,   probabilities, nodes,       ptrs,
               draft_probs, draft_ids, per_node, sampling,      bias_ptr,    bias_ids,
               bias_values, stop_ptr,  stop_ids, history_ptr,   history_ids, bitmask,
               epsilon,     delta,     seed,     streams,       out,         out_log_probs};
  if (IsCpu(target.device())) {
    args.Decide(nullptr);
    return;
  }
  CudaVerify* cuda = &VerifierOf(target.device());
  if (args.Decide(cuda)) return;
  std::vector<ffi::Tensor> copies;
  const auto on_host = [&](const TensorView& tensor) {
    if (!IsCuda(tensor.device())) return tensor;
    copies.push_back(OnHost(tensor, "logits and draft_probs", cuda));
    return TensorView(copies.back());
  };
  args.target = on_host(args.target);
  for (MaybeTensor* tensor : {&args.draft_probs, &args.draft_ids, &args.bitmask}) {
    if (tensor->has_value()) *tensor = on_host(tensor->value());
  }
  args.Decide(nullptr);
}

/*!
 * \brief Draws n tokens from each of the rows of logits.
 * \param streams (4, rows) int64: request id, root position, first node, depth.
 * \param out_tokens (rows, n) int32.
 * \param out_probs (rows, vocab) float32 or float64, or absent.
 */
void Draft(int64_t how, TensorView logits, TensorView sampling, MaybeTensor bias_ptr,
           MaybeTensor bias_ids, MaybeTensor bias_values, int64_t seed, TensorView streams,
           TensorView out_tokens, TensorView out_probs) {
  const auto drawn = static_cast<Drawn>(InRange(how, 0, 3, "how"));
  CheckMatrix(logits, "logits");
  const int64_t rows = logits.size(0);
  const int32_t vocab = VocabSize(logits.size(1));
  const DType type = FloatRowType(logits, "logits", false);
  const SamplingTable samplings(sampling, bias_ptr, bias_ids, bias_values, vocab, rows);
  const int64_t* stream = Data<int64_t>(streams, "streams", {4, rows});
  int32_t* tokens = MutableData<int32_t>(out_tokens, "out_tokens", {rows, kAny});
  const int64_t n = out_tokens.size(1);
  char* probs = nullptr;
  DType probs_type = DType::kFloat32;
  if (out_probs.numel() != 0) {
    probs_type = FloatRowType(out_probs, "out_probs", true);
    CheckShape(out_probs, "out_probs", {rows, vocab});
    probs = static_cast<char*>(Pointer(out_probs));
  }
  const int64_t width = probs_type == DType::kFloat64 ? 8 : 4;
  std::vector<DraftItem> items(rows);
  for (int64_t r = 0; r < rows; ++r) {
    DraftItem& item = items[r];
    item.row.values = RowPointer(logits, r);
    item.row.type = type;
    item.sampling = &samplings[r];
    item.stream = {static_cast<uint64_t>(seed), static_cast<uint64_t>(stream[r])};
    item.root_position = RootPosition(stream[rows + r], r, 0);
    item.first_node =
        static_cast<uint32_t>(InRange(stream[2 * rows + r], 1, 1 << 27, "first node"));
    item.depth = static_cast<uint32_t>(InRange(stream[3 * rows + r], 1, 1 << 27, "depth"));
    item.tokens = tokens + r * n;
    item.probs = probs == nullptr ? nullptr : probs + width * vocab * r;
  }
  DraftItems(drawn, static_cast<int32_t>(n), probs_type, vocab, ShareItemsAmongThreads, &items);
}

/*!
 * \brief All outcomes of a rule on the trees of a batch, with their probabilities.
 * \return (outcomes, 4) float64 as bytes: sequence, node, bonus, probability.
 */
ffi::Bytes EnumerateBatch(int64_t rule, int64_t check, TensorView target, TensorView nodes,
                          TensorView ptrs, MaybeTensor draft_probs, int64_t per_node,
                          TensorView sampling, double epsilon, double delta) {
  const auto rule_kind = static_cast<Rule>(InRange(rule, 0, kNumRules - 1, "rule"));
  VerifyBatch batch(target, true, nodes, ptrs);
  batch.SetDraft(draft_probs, std::nullopt, per_node != 0);
  batch.SetSampling(sampling, std::nullopt, std::nullopt, std::nullopt);
  batch.SetThresholds(epsilon, delta);
  const VocabContext vocab(batch.vocab_size());
  std::vector<double> outcomes;
  for (int64_t b = 0; b < batch.size(); ++b) {
    for (const auto& [p, outcome] : Enumerate(rule_kind, vocab, batch.input(b), check != 0)) {
      outcomes.insert(outcomes.end(), {static_cast<double>(b), static_cast<double>(outcome.node),
                                       static_cast<double>(outcome.bonus), p});
    }
  }
  return ffi::Bytes(reinterpret_cast<const char*>(outcomes.data()),
                    outcomes.size() * sizeof(double));
}

/*!
 * \brief The probability of each node of the trees of a batch to be the last accepted one.
 * \param out (N) float64.
 */
void LastAcceptedBatch(int64_t rule, int64_t check, TensorView target, TensorView nodes,
                       TensorView ptrs, MaybeTensor draft_probs, int64_t per_node,
                       TensorView sampling, double epsilon, double delta, TensorView out) {
  const auto rule_kind = static_cast<Rule>(InRange(rule, 0, kNumRules - 1, "rule"));
  VerifyBatch batch(target, true, nodes, ptrs);
  batch.SetDraft(draft_probs, std::nullopt, per_node != 0);
  batch.SetSampling(sampling, std::nullopt, std::nullopt, std::nullopt);
  batch.SetThresholds(epsilon, delta);
  double* probabilities = MutableData<double>(out, "out", {batch.num_nodes()});
  const VocabContext vocab(batch.vocab_size(), CpuVocabOps());
  for (int64_t b = 0; b < batch.size(); ++b) {
    const std::vector<double> last = LastAccepted(rule_kind, vocab, batch.input(b), check != 0);
    std::copy(last.begin(), last.end(), probabilities + batch.node_begin(b));
  }
}

ffi::Array<int64_t> Philox(int64_t c0, int64_t c1, int64_t c2, int64_t c3, int64_t k0, int64_t k1) {
  const auto words = Philox4x32({static_cast<uint32_t>(c0), static_cast<uint32_t>(c1),
                                 static_cast<uint32_t>(c2), static_cast<uint32_t>(c3)},
                                static_cast<uint32_t>(k0), static_cast<uint32_t>(k1));
  return {words[0], words[1], words[2], words[3]};
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef()
      .def("kvctl.verify.run", Guarded(Run), "Accept or reject the drafted trees of a batch")
      .def("kvctl.verify.draft", Guarded(Draft),
           "Draw tokens, with the distribution they were drawn from")
      .def("kvctl.verify.enumerate", Guarded(EnumerateBatch),
           "Every outcome of a rule with its exact probability")
      .def("kvctl.verify.last_accepted", Guarded(LastAcceptedBatch),
           "How probable each node is to be the last accepted one")
      .def("kvctl.verify.philox", Guarded(Philox), "Philox4x32-10, for tests of other generators");
}

}  // namespace kvctl
