// The calls of kvctl.verify.* from their requests. One file above 300 lines, since verification and
// drafting read their requests with the same helpers.
#include "runtime/verify/verify_request.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "kernels/sampling.h"
#include "kvctl/checking.h"
#include "kvctl/error.h"
#include "runtime/support/device.h"
#include "runtime/support/stream_scope.h"
#include "runtime/support/tensor_view.h"
#include "runtime/verify/request_arrays.h"
#include "runtime/verify/sample_draft.h"
#include "runtime/verify/verify_batch.h"
#include "runtime/verify/verify_checks.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

Tensor Given(const MaybeTensor& tensor, const char* what) {
  if (!tensor.has_value()) Throw(ErrorKind::kType, what, " must be given");
  return *tensor;
}

/*! \brief The (n) elements of a tensor that may be absent. */
template <typename T>
const T* DataOrNull(const MaybeTensor& tensor, const char* what, int64_t n) {
  return tensor.has_value() ? TensorData<const T>(*tensor, what, {n}) : nullptr;
}

template <typename T>
std::vector<T> ToVector(const MaybeTensor& tensor, const char* what, int64_t n) {
  const auto* data = DataOrNull<T>(tensor, what, n);
  return data == nullptr ? std::vector<T>() : std::vector<T>(data, data + n);
}

std::vector<int32_t> Int32List(const MaybeTensor& tensor, const char* what) {
  return tensor.has_value() ? ToVector<int32_t>(tensor, what, (*tensor)->shape[0])
                            : std::vector<int32_t>();
}

DType RowDType(const Tensor& tensor, const char* what, bool distribution) {
  const DLDataType dtype = tensor->dtype;
  if (!distribution) return FloatDType(dtype, what);
  if (dtype.code == kDLFloat && dtype.lanes == 1) {
    if (dtype.bits == 32) return DType::kFloat32;
    if (dtype.bits == 64) return DType::kFloat64;
  }
  Throw(ErrorKind::kType, what, " must be float32 or float64, got ", DTypeText(dtype));
}

Sampling ToSampling(const SamplingParams& params) {
  Sampling sampling;
  sampling.temperature = params->temperature;
  if (params->top_k < 0 || params->top_k > std::numeric_limits<int32_t>::max()) {
    Throw(ErrorKind::kValue, "top_k must be in [0, 2^31), got ", params->top_k);
  }
  sampling.top_k = static_cast<int32_t>(params->top_k);
  sampling.top_p = params->top_p;
  sampling.min_p = params->min_p;
  sampling.repetition_penalty = params->repetition_penalty;
  sampling.presence_penalty = params->presence_penalty;
  sampling.frequency_penalty = params->frequency_penalty;
  if (params->bias_tokens.has_value()) {
    const int64_t n = (*params->bias_tokens)->shape[0];
    const auto* tokens = DataOrNull<int32_t>(params->bias_tokens, "bias_tokens", n);
    const auto* values =
        TensorData<const float>(Given(params->bias_values, "bias_values"), "bias_values", {n});
    for (int64_t i = 0; i < n; ++i) sampling.logit_bias.emplace_back(tokens[i], values[i]);
  }
  sampling.stop_tokens = Int32List(params->stop_tokens, "stop_tokens");
  return sampling;
}

std::vector<Sampling> ToSamplings(const ffi::Array<SamplingParams>& params) {
  std::vector<Sampling> samplings;
  samplings.reserve(params.size());
  for (const SamplingParams& one : params) samplings.push_back(ToSampling(one));
  return samplings;
}

std::vector<Drawn> DrawnOf(const VerifyRequestObj& request, int64_t num_nodes) {
  const auto checked = [](int64_t kind) {
    return static_cast<Drawn>(InRange(kind, 0, kNumDrawn - 1, "drawn"));
  };
  if (!request.drawn_per_node.has_value()) return {checked(request.drawn)};
  const auto* kinds = DataOrNull<int32_t>(request.drawn_per_node, "drawn_per_node", num_nodes);
  std::vector<Drawn> drawn(num_nodes);
  std::transform(kinds, kinds + num_nodes, drawn.begin(), checked);
  return drawn;
}

void SetDraft(const VerifyRequestObj& request, const RowTensors& tensors, int64_t num_nodes,
              BatchArrays* arrays) {
  if (!tensors.draft_probs.has_value()) return;
  const Tensor& probs = *tensors.draft_probs;
  arrays->draft_rows = request.draft_per_node ? num_nodes : arrays->num_rows;
  const bool sparse = tensors.draft_ids.has_value();
  arrays->draft.type = RowDType(probs, "draft_probs", true);
  CheckTensor(probs.operator->(), "draft_probs", tensors.logits->device,
              {arrays->draft_rows, sparse ? kAnyExtent : arrays->vocab_size});
  arrays->draft.probs = DataPointer(probs.operator->());
  arrays->draft.width = static_cast<int32_t>(probs->shape[1]);
  arrays->draft.per_node = request.draft_per_node;
  if (sparse) {
    arrays->draft.ids = TensorData<const int32_t>(*tensors.draft_ids, "draft_ids",
                                                  {arrays->draft_rows, probs->shape[1]});
  }
}

void SetHistory(const VerifyRequestObj& request, BatchArrays* arrays) {
  if (!request.history_begins.has_value()) return;
  const auto size = static_cast<int64_t>(arrays->trees.size());
  const auto* begins = DataOrNull<int64_t>(request.history_begins, "history_begins", size + 1);
  const Tensor values = Given(request.history, "history");
  const auto* tokens = TensorData<const int32_t>(values, "history", {kAnyExtent});
  if (begins[0] != 0 || begins[size] != values->shape[0] ||
      !std::is_sorted(begins, begins + size + 1)) {
    Throw(ErrorKind::kValue, "history_begins must ascend from 0 to ", values->shape[0],
          ", the number of values");
  }
  for (int64_t b = 0; b < size; ++b) {
    arrays->history.push_back({tokens + begins[b], begins[b + 1] - begins[b]});
  }
}

/*! \brief A contiguous copy of a tensor on the host; the tensor itself if it lies there. */
Tensor OnHost(const Tensor& tensor, CudaVerify* cuda) {
  if (!IsCuda(tensor->device)) return tensor;
  if (!tensor.IsContiguous()) {
    Throw(ErrorKind::kValue, "logits and draft_probs must be contiguous");
  }
  const Tensor copy = Tensor::Empty(ffi::Shape(tensor.shape()), tensor->dtype, kHostDevice);
  cuda->CopyToHost(copy->data, DataPointer(tensor.operator->()),
                   ffi::GetDataSize(*copy.operator->()), CurrentStream(tensor->device));
  return copy;
}

const uint32_t* FittedBitmask(const Tensor& bitmask, int64_t n, int64_t vocab_size,
                              std::vector<uint32_t>* fitted) {
  const auto* rows = TensorData<const int32_t>(bitmask, "bitmask", {n, kAnyExtent});
  return FitBitmask(reinterpret_cast<const uint32_t*>(rows), n, bitmask->shape[1], vocab_size,
                    fitted);
}

}  // namespace

BatchArrays ArraysOf(const VerifyRequestObj& request, const RowTensors& tensors) {
  BatchArrays arrays;
  arrays.rule = static_cast<Rule>(InRange(request.rule, 0, kNumRules - 1, "rule"));
  arrays.gumbel = request.gumbel;
  const char* target = request.probabilities ? "probabilities" : "logits";
  CheckTensor(tensors.logits.operator->(), target, tensors.logits->device,
              {kAnyExtent, kAnyExtent});
  arrays.target = DataPointer(tensors.logits.operator->());
  arrays.num_rows = tensors.logits->shape[0];
  arrays.vocab_size = CheckVocabSize(tensors.logits->shape[1]);
  arrays.target_type = RowDType(tensors.logits, target, request.probabilities);
  arrays.probabilities = request.probabilities;
  if (request.trees.has_value()) {
    const auto* code = TensorData<const int32_t>(*request.trees, "trees", {kAnyExtent});
    arrays.trees = SplitTrees(code, (*request.trees)->shape[0]);
  } else {
    arrays.trees = LoneRoots(arrays.num_rows);
    arrays.least_root_position = -1;
  }
  const auto size = static_cast<int64_t>(arrays.trees.size());
  const int64_t num_nodes = NumNodes(arrays.trees);
  arrays.drawn = DrawnOf(request, num_nodes);
  SetDraft(request, tensors, num_nodes, &arrays);
  arrays.sampling = ToSamplings(request.sampling);
  arrays.seed = static_cast<uint64_t>(request.seed);
  arrays.request_ids = DataOrNull<int64_t>(request.request_ids, "request_ids", size);
  arrays.root_positions = DataOrNull<int64_t>(request.root_positions, "root_positions", size);
  SetHistory(request, &arrays);
  if (tensors.bitmask.has_value()) {
    arrays.bitmask =
        FittedBitmask(*tensors.bitmask, num_nodes, arrays.vocab_size, &arrays.fitted_bitmask);
  }
  arrays.epsilon = request.epsilon;
  arrays.delta = request.delta;
  return arrays;
}

RowTensors RowTensorsOf(const VerifyRequestObj& request) {
  return {Given(request.logits, "logits"), request.draft_probs, request.draft_ids, request.bitmask};
}

void MoveToHost(RowTensors* tensors) {
  if (IsCpu(tensors->logits->device)) return;
  const StreamScope scope(tensors->logits->device);
  CudaVerify* cuda = &VerifierOf(tensors->logits->device);
  tensors->logits = OnHost(tensors->logits, cuda);
  for (MaybeTensor* tensor : {&tensors->draft_probs, &tensors->draft_ids, &tensors->bitmask}) {
    if (tensor->has_value()) *tensor = OnHost(**tensor, cuda);
  }
}

/*!
 * \brief Decides on the CPU, or with `cuda` on the device of the logits.
 * \param errors out, one for each sequence; nullptr: thrown.
 * \return false if the device's kernels do not know the call.
 */
static bool Decide(const VerifyRequestObj& request, const RowTensors& tensors, CudaVerify* cuda,
                   const Tensor& out, const MaybeTensor& out_log_probs,
                   std::vector<std::string>* errors) {
  const bool plain = !request.probabilities && !tensors.draft_ids.has_value();
  // Logits are checked on the host.
  if (cuda != nullptr && (!plain || Checking())) return false;
  BatchArrays arrays = ArraysOf(request, tensors);
  std::vector<VerifyItem> items = MakeItems(&arrays);
  const auto size = static_cast<int64_t>(items.size());
  const int64_t n = NumNodes(arrays.trees);
  auto* nodes = TensorData<int32_t>(out, "out", {3 * n + 4 * size});
  double* log_probs = out_log_probs.has_value()
                          ? TensorData<double>(*out_log_probs, "out_log_probs", {n})
                          : nullptr;
  if (errors != nullptr) {
    errors->assign(size, "");
    for (int64_t b = 0; b < size; ++b) items[b].error = &(*errors)[b];
  }
  SetOutputs({nodes, nodes + n, nodes + 2 * n, log_probs}, &items);
  const auto vocab_size = static_cast<int32_t>(arrays.vocab_size);
  if (cuda == nullptr) {
    VerifyItems(arrays.rule, vocab_size, ShareItemsAmongThreads, &items);
  } else if (!cuda->Verify(arrays.rule, vocab_size, &items,
                           CurrentStream(tensors.logits->device))) {
    return false;
  }
  int32_t* counts = nodes + 3 * n;
  for (int64_t b = 0; b < size; ++b) {
    counts[b] = items[b].num_nodes;
    counts[size + b] = items[b].num_tokens;
    counts[2 * size + b] = items[b].bonus;
    counts[3 * size + b] = items[b].finished;
  }
  return true;
}

static void Run(const VerifyRequestObj& request, const Tensor& out,
                const MaybeTensor& out_log_probs, std::vector<std::string>* errors) {
  RowTensors tensors = RowTensorsOf(request);
  const StreamScope scope(tensors.logits->device);
  if (!IsCpu(tensors.logits->device)) {
    CudaVerify* cuda = &VerifierOf(tensors.logits->device);
    if (tensors.bitmask.has_value()) tensors.bitmask = OnHost(*tensors.bitmask, cuda);
    try {
      if (Decide(request, tensors, cuda, out, out_log_probs, errors)) return;
    } catch (const Error&) {
      if (errors == nullptr) throw;  // otherwise the host says which sequence it was
    }
    MoveToHost(&tensors);
  }
  Decide(request, tensors, nullptr, out, out_log_probs, errors);
}

void RunVerify(const VerifyRequest& request, const Tensor& out, const MaybeTensor& out_log_probs) {
  Run(*request.get(), out, out_log_probs, nullptr);
}

void RunGreedy(const Tensor& trees, int64_t drawn, const Tensor& logits, const Tensor& out) {
  const auto sampling = ffi::make_object<SamplingParamsObj>();
  sampling->temperature = 0;
  const auto request = ffi::make_object<VerifyRequestObj>();
  request->rule = static_cast<int64_t>(Rule::kGreedy);
  request->trees = trees;
  request->drawn = drawn;
  request->logits = logits;
  request->sampling = {SamplingParams(sampling)};
  Run(*request, out, std::nullopt, nullptr);
}

ffi::Array<ffi::String> RunVerifyEach(const VerifyRequest& request, const Tensor& out,
                                      const MaybeTensor& out_log_probs) {
  std::vector<std::string> errors;
  Run(*request.get(), out, out_log_probs, &errors);
  ffi::Array<ffi::String> texts;
  for (const std::string& error : errors) texts.push_back(error);
  return texts;
}

/*! \brief A call's rows. \param bitmask of the request, on the host. \param fitted its storage. */
static DraftBatch BatchOf(const DraftRequest& request, const Tensor& logits,
                          const MaybeTensor& bitmask, const Tensor& out_tokens,
                          std::vector<uint32_t>* fitted) {
  DraftBatch batch;
  batch.how = static_cast<Drawn>(InRange(request->how, 0, kNumDrawn - 1, "how"));
  batch.logits = DataPointer(logits.operator->());
  batch.dtype = FloatDType(logits->dtype, "logits");
  batch.num_rows = logits->shape[0];
  batch.vocab_size = logits->shape[1];
  batch.sampling = ToSamplings(request->sampling);
  if (bitmask.has_value()) {
    batch.bitmask = FittedBitmask(*bitmask, batch.num_rows, batch.vocab_size, fitted);
  }
  batch.seed = static_cast<uint64_t>(request->seed);
  for (int64_t id : ToVector<int64_t>(request->request_ids, "request_ids", batch.num_rows)) {
    batch.request_ids.push_back(static_cast<uint64_t>(id));
  }
  batch.root_positions =
      ToVector<int64_t>(request->root_positions, "root_positions", batch.num_rows);
  batch.first_nodes = ToVector<int64_t>(request->first_nodes, "first_nodes", batch.num_rows);
  batch.depths = ToVector<int64_t>(request->depths, "depths", batch.num_rows);
  batch.num_tokens = static_cast<int32_t>(
      InRange(out_tokens->shape[1], 1, std::numeric_limits<int32_t>::max(), "n"));
  return batch;
}

void RunDraft(const DraftRequest& request, const Tensor& out_tokens, const Tensor& out_probs) {
  const Tensor logits = Given(request->logits, "logits");
  CheckTensor(logits.operator->(), "logits", kHostDevice, {kAnyExtent, kAnyExtent});
  auto* tokens = TensorData<int32_t>(out_tokens, "out_tokens", {logits->shape[0], kAnyExtent});
  std::vector<uint32_t> fitted;
  const DraftBatch batch = BatchOf(request, logits, request->bitmask, out_tokens, &fitted);
  const DType probs_dtype = RowDType(out_probs, "out_probs", true);
  CheckTensor(out_probs.operator->(), "out_probs", kHostDevice, {batch.num_rows, batch.vocab_size});
  SampleDraftInto(batch, tokens, DataPointer(out_probs.operator->()), probs_dtype);
}

Tensor RunDraftOnDevice(const DraftRequest& request, const Tensor& out_tokens,
                        DLDataType probs_dtype) {
  const Tensor logits = Given(request->logits, "logits");
  const DLDevice device = logits->device;
  if (!IsCuda(device)) Throw(ErrorKind::kValue, "logits must be on a CUDA device");
  CheckTensor(logits.operator->(), "logits", device, {kAnyExtent, kAnyExtent});
  auto* tokens = TensorData<int32_t>(out_tokens, "out_tokens", {logits->shape[0], kAnyExtent});
  const StreamScope scope(device);
  CudaVerify* cuda = &VerifierOf(device);
  const MaybeTensor bitmask =
      request->bitmask.has_value() ? MaybeTensor(OnHost(*request->bitmask, cuda)) : MaybeTensor();
  std::vector<uint32_t> fitted;
  DraftBatch batch = BatchOf(request, logits, bitmask, out_tokens, &fitted);
  const ffi::Shape shape{batch.num_rows, batch.vocab_size};
  Tensor probs = Tensor::Empty(shape, probs_dtype, device);
  const DType dtype = RowDType(probs, "probs", true);
  if (SampleDraftOnDevice(batch, cuda, CurrentStream(device), tokens,
                          DataPointer(probs.operator->()), dtype)) {
    return probs;
  }
  // The host draws, or says what is wrong.
  const Tensor rows = OnHost(logits, cuda), drawn = Tensor::Empty(shape, probs_dtype, kHostDevice);
  batch.logits = DataPointer(rows.operator->());
  SampleDraftInto(batch, tokens, drawn->data, dtype);
  probs.CopyFromBytes(drawn->data, ffi::GetDataSize(*drawn.operator->()));
  return probs;
}

}  // namespace kvctl
