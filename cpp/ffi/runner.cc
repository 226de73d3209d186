// "kvctl.runner.*": compiled model libraries, and models on a kvctl cache.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/device.h>
#include <tvm/ffi/object.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>

#include <string>
#include <utility>
#include <vector>

#include "core/support/narrow.h"
#include "core/tree/token_tree_codec.h"
#include "ffi/mask_argument.h"
#include "kvctl/function_table.h"
#include "kvctl/model_runner.h"
#include "runtime/support/guard.h"
#include "runtime/support/stream_scope.h"
#include "runtime/support/tensor_view.h"
#include "runtime/verify/sample_shards.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

/*! \brief A FunctionTable that Python can hold. */
class FunctionTableObj : public ffi::Object {
 public:
  explicit FunctionTableObj(FunctionTable value) : table(std::move(value)) {}
  FunctionTable table;

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.FunctionTable", FunctionTableObj, ffi::Object);
};

class FunctionTableRef : public ffi::ObjectRef {
 public:
  explicit FunctionTableRef(FunctionTable table)
      : ffi::ObjectRef(ffi::make_object<FunctionTableObj>(std::move(table))) {}
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(FunctionTableRef, ffi::ObjectRef, FunctionTableObj);
};

FunctionTableRef LoadLibrary(const ffi::String& path, DLDevice device) {
  return FunctionTableRef(FunctionTable::Load(path, device));
}

ffi::Function GetFunction(const FunctionTableRef& library, const ffi::String& name) {
  ModelFunction function = library->table.Find(name);
  if (!function) Throw(ErrorKind::kKey, function.AbsentMessage());
  return function.packed();
}

bool HasFunction(const FunctionTableRef& library, const ffi::String& name) {
  return static_cast<bool>(library->table.Find(name));
}

ffi::Array<ffi::String> FunctionNames(const FunctionTableRef& library) {
  ffi::Array<ffi::String> names;
  for (const std::string& name : library->table.names()) names.push_back(name);
  return names;
}

/*! \brief callback: see FunctionTable::Instrument; nullopt ends it. */
void InstrumentLibrary(const FunctionTableRef& library,
                       const ffi::Optional<ffi::Function>& callback) {
  library->table.Instrument(callback.value_or(nullptr));
}

ffi::String LibraryPath(const FunctionTableRef& library) { return library->table.path(); }

ffi::String LibraryMetadata(const FunctionTableRef& library) {
  return library->table.metadata_text();
}

/*! \brief A ModelRunner that Python can hold. */
class ModelRunnerObj : public ffi::Object {
 public:
  explicit ModelRunnerObj(ModelRunner value) : runner(std::move(value)) {}
  ModelRunner runner;
  bool joins_logits = true;  //!< of several workers: the first one's logits are those of all

  /*! \brief The logits of a forward as its caller wants them. */
  Tensor Logits(const Tensor& local) const {
    return joins_logits ? runner.GatherLogits(local) : local;
  }

  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.ModelRunner", ModelRunnerObj, ffi::Object);
};

class ModelRunnerRef : public ffi::ObjectRef {
 public:
  explicit ModelRunnerRef(ModelRunner runner)
      : ffi::ObjectRef(ffi::make_object<ModelRunnerObj>(std::move(runner))) {}
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(ModelRunnerRef, ffi::ObjectRef, ModelRunnerObj);
};

DLDevice DeviceOf(const ModelRunnerRef& self) { return self->runner.functions().device(); }

/*! \brief library: one that is loaded already, or nullopt. kv_dtype: "" is its own. kv_scales: of
 * float8_e4m3fn pages, or nullopt. progress: f(bytes read, bytes), or nullopt. */
ModelRunnerRef LoadModel(const ffi::String& directory, DLDevice device,
                         const ffi::Optional<FunctionTableRef>& library, int64_t max_sequences,
                         int64_t max_total_tokens, int64_t prefill_chunk_size, int64_t page_size,
                         const ffi::String& kv_dtype,
                         const ffi::Optional<tvm::runtime::Tensor>& kv_scales, int64_t max_history,
                         int64_t max_state_bytes, bool keep_steps, int64_t shard,
                         const ffi::Optional<ffi::Function>& progress) {
  RunnerOptions options;
  options.device = device;
  options.max_sequences = max_sequences;
  options.max_total_tokens = max_total_tokens;
  options.prefill_chunk_size = prefill_chunk_size;
  options.page_size = page_size;
  if (!kv_dtype.empty()) options.kv_dtype = ffi::StringToDLDataType(kv_dtype);
  options.kv_scales = kv_scales;
  options.max_history = max_history;
  options.max_state_bytes = max_state_bytes;
  options.keep_steps = keep_steps;
  options.shard = shard;
  if (progress.has_value()) {
    options.progress = [report = *progress](int64_t done, int64_t total) { report(done, total); };
  }
  return ModelRunnerRef(library.has_value()
                            ? ModelRunner::Load(directory, (*library)->table, options)
                            : ModelRunner::Load(directory, options));
}

std::vector<int64_t> ToVector(const ffi::Shape& values) {
  return std::vector<int64_t>(values.begin(), values.end());
}

std::vector<int32_t> ToInt32(const ffi::Shape& values, const char* what) {
  std::vector<int32_t> narrow;
  narrow.reserve(values.size());
  for (int64_t value : values) narrow.push_back(Narrow(value, what));
  return narrow;
}

/*! \throws Error kValue unless the lengths are at least 0 and add up to the values given. */
void CheckLengths(const ffi::Shape& flat, const ffi::Shape& lengths, const char* what) {
  auto left = static_cast<int64_t>(flat.size());
  for (int64_t length : lengths) {
    left = length < 0 || length > left ? -1 : left - length;
    if (left < 0) break;
  }
  if (left == 0) return;
  Throw(ErrorKind::kValue, "the lengths do not add up to the ", flat.size(), " values (", what,
        ") given");
}

/*! \brief Flat values as one vector per sequence. */
std::vector<std::vector<int32_t>> Split(const ffi::Shape& flat, const ffi::Shape& lengths,
                                        const char* what) {
  CheckLengths(flat, lengths, what);
  const std::vector<int32_t> values = ToInt32(flat, what);
  std::vector<std::vector<int32_t>> parts;
  auto at = values.begin();
  for (int64_t length : lengths) {
    parts.emplace_back(at, at + length);
    at += length;
  }
  return parts;
}

Tensor Prefill(const ModelRunnerRef& self, const ffi::Shape& seq_ids, const ffi::Shape& lengths,
               const ffi::Shape& tokens) {
  return self->Logits(self->runner.Prefill(ToVector(seq_ids), Split(tokens, lengths, "token")));
}

Tensor Decode(const ModelRunnerRef& self, const ffi::Shape& seq_ids, const ffi::Shape& tokens) {
  return self->Logits(self->runner.Decode(ToVector(seq_ids), ToInt32(tokens, "token")));
}

/*! \brief trees: encoded, one after another. */
Tensor Verify(const ModelRunnerRef& self, const ffi::Shape& seq_ids, const Tensor& trees) {
  const auto* code = TensorData<const int32_t>(trees, "trees", {kAnyExtent});
  return self->Logits(self->runner.Verify(ToVector(seq_ids), DecodeTrees(code, trees->shape[0])));
}

ForwardOptions OptionsOf(const ffi::Shape& hidden, int64_t exit_layer) {
  return {ToInt32(hidden, "layer"), Narrow(exit_layer, "layers")};
}

ffi::Array<ffi::Optional<Tensor>> ToArray(const ModelRunnerRef& self, const ForwardRows& rows) {
  ffi::Optional<Tensor> hidden, entering;
  if (rows.hidden.defined()) hidden = rows.hidden;
  if (rows.entering.defined()) entering = rows.entering;
  return {ffi::Optional<Tensor>(self->Logits(rows.logits)), hidden, entering};
}

/*! \brief hidden: layers, -1 being what the output layer reads. exit_layer: 0, or how many run. */
ffi::Array<ffi::Optional<Tensor>> VerifyStates(const ModelRunnerRef& self,
                                               const ffi::Shape& seq_ids, const Tensor& trees,
                                               const ffi::Shape& hidden, int64_t exit_layer) {
  const auto* code = TensorData<const int32_t>(trees, "trees", {kAnyExtent});
  return ToArray(self, self->runner.Verify(ToVector(seq_ids), DecodeTrees(code, trees->shape[0]),
                                           OptionsOf(hidden, exit_layer)));
}

Tensor Embed(const ModelRunnerRef& self, const ffi::Shape& tokens) {
  const std::vector<int32_t> ids = ToInt32(tokens, "token");
  for (int32_t token : ids) {
    if (token < 0 || token >= self->runner.vocab_size()) {
      Throw(ErrorKind::kValue, "token ", token, " is not in the model's vocabulary [0, ",
            self->runner.vocab_size(), ")");
    }
  }
  if (ids.empty()) Throw(ErrorKind::kValue, "there are no tokens to embed");
  return self->runner.Embed(ids);
}

Tensor PrefillEmbeddings(const ModelRunnerRef& self, const ffi::Shape& seq_ids,
                         const ffi::Array<Tensor>& embeddings) {
  return self->Logits(
      self->runner.PrefillEmbeddings(ToVector(seq_ids), {embeddings.begin(), embeddings.end()}));
}

/*! \brief entering: (rows of all sequences, hidden). */
ffi::Array<ffi::Optional<Tensor>> Complete(const ModelRunnerRef& self, const ffi::Shape& seq_ids,
                                           const Tensor& entering, int64_t exit_layer) {
  return ToArray(self,
                 self->runner.Complete(ToVector(seq_ids), entering, Narrow(exit_layer, "layers")));
}

bool GivesHidden(const ModelRunnerRef& self) { return self->runner.GivesHidden(); }

void CheckSize(const ffi::Shape& lengths, const ffi::Shape& seq_ids) {
  if (lengths.size() != seq_ids.size()) {
    Throw(ErrorKind::kValue, seq_ids.size(), " sequences were named and ", lengths.size(),
          " token lists given");
  }
}

/*! \brief masks: one per sequence or nullopt. positions: flat, or nullopt. pending: 1, 0, or -1 for
 * exactly when the mask is a tree. hidden, exit_layer: as VerifyStates takes them. */
ffi::Array<ffi::Optional<Tensor>> ForwardStates(
    const ModelRunnerRef& self, const ffi::Shape& seq_ids, const ffi::Shape& lengths,
    const ffi::Shape& tokens, const ffi::Optional<ffi::Array<ffi::Optional<Tensor>>>& masks,
    const ffi::Optional<ffi::Shape>& positions, int64_t pending, const ffi::Shape& hidden,
    int64_t exit_layer) {
  CheckLengths(tokens, lengths, "token");
  CheckSize(lengths, seq_ids);
  if (masks.has_value() && masks.value().size() != seq_ids.size()) {
    Throw(ErrorKind::kValue, seq_ids.size(), " sequences were named and ", masks.value().size(),
          " masks given");
  }
  std::vector<int32_t> flat_positions;
  if (positions.has_value()) {
    CheckLengths(positions.value(), lengths, "position");
    flat_positions = ToInt32(positions.value(), "position");
  }
  std::vector<StepRequest> requests(seq_ids.size());
  int64_t at = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].seq_id = seq_ids[i];
    requests[i].append_length = lengths[i];
    if (positions.has_value()) requests[i].positions = flat_positions.data() + at;
    if (masks.has_value() && masks.value()[i].has_value()) {
      requests[i].mask = DecodeMask(masks.value()[i].value());
    }
    if (pending >= 0) requests[i].pending = pending != 0;
    at += lengths[i];
  }
  return ToArray(self, self->runner.Forward(requests, ToInt32(tokens, "token"),
                                            OptionsOf(hidden, exit_layer)));
}

/*! \brief Prompts with the hidden states of all their tokens; hidden as VerifyStates takes it. */
ffi::Array<ffi::Optional<Tensor>> PrefillStates(const ModelRunnerRef& self,
                                                const ffi::Shape& seq_ids,
                                                const ffi::Shape& lengths, const ffi::Shape& tokens,
                                                const ffi::Shape& hidden) {
  CheckLengths(tokens, lengths, "token");
  CheckSize(lengths, seq_ids);
  std::vector<StepRequest> requests(seq_ids.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].seq_id = seq_ids[i];
    requests[i].append_length = lengths[i];
  }
  ForwardOptions options = OptionsOf(hidden, 0);
  options.last_logits = true;
  return ToArray(self, self->runner.Forward(requests, ToInt32(tokens, "token"), options));
}

ffi::Optional<PagedKVCache> CacheOf(const ModelRunnerRef& self) {
  const PagedKVCache& cache = self->runner.cache();
  if (!cache.defined()) return std::nullopt;
  return cache;
}
ffi::Optional<RecurrentState> StateOf(const ModelRunnerRef& self) {
  const RecurrentState& state = self->runner.state();
  if (!state.defined()) return std::nullopt;
  return state;
}
FunctionTableRef LibraryOf(const ModelRunnerRef& self) {
  return FunctionTableRef(self->runner.functions());
}
ffi::Array<Tensor> ParamsOf(const ModelRunnerRef& self) { return self->runner.params(); }
ffi::String ConfigOf(const ModelRunnerRef& self) {
  return ffi::json::Stringify(self->runner.config());
}
int64_t VocabSizeOf(const ModelRunnerRef& self) { return self->runner.vocab_size(); }
int64_t LogitColumnsOf(const ModelRunnerRef& self) { return self->runner.logit_columns(); }
int64_t NumShardsOf(const ModelRunnerRef& self) { return self->runner.num_shards(); }
void SetJoinLogits(const ModelRunnerRef& self, bool join) { self->joins_logits = join; }
Tensor GatherLogits(const ModelRunnerRef& self, const Tensor& local) {
  return self->runner.GatherLogits(local);
}

/*! \brief logits: (rows, columns) of this worker. temperatures: (rows). request_ids, positions:
 * (rows), or empty where all temperatures are 0. */
Tensor SampleRows(const ModelRunnerRef& self, const Tensor& logits, const Tensor& temperatures,
                  int64_t seed, const ffi::Shape& request_ids, const ffi::Shape& positions) {
  ShardRows shard;
  shard.logits = TensorData<const float>(logits, "logits", {kAnyExtent, kAnyExtent});
  shard.rows = logits->shape[0];
  shard.columns = logits->shape[1];
  shard.temperatures = TensorData<const double>(temperatures, "temperatures", {shard.rows});
  const auto rows = static_cast<size_t>(shard.rows);
  const bool named = request_ids.size() == rows && positions.size() == rows;
  for (int64_t row = 0; row < shard.rows; ++row) {
    if (named || shard.temperatures[row] == 0) continue;
    Throw(ErrorKind::kValue, "rows that are sampled need request_ids and positions, one of each");
  }
  const ShardStreams streams = {static_cast<uint64_t>(seed), request_ids.data(), positions.data()};
  return SampleShards(shard, self->runner.num_shards(), self->runner.shard(), streams);
}

int64_t PrefillChunkOf(const ModelRunnerRef& self) { return self->runner.prefill_chunk_size(); }

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::ObjectDef<FunctionTableObj>();
  refl::ObjectDef<ModelRunnerObj>();
  refl::GlobalDef()
      .def("kvctl.runner.load_library", Guarded(LoadLibrary),
           "Load a compiled Relax library and start its virtual machine")
      .def("kvctl.runner.get_function", Guarded(GetFunction), "A library's function, by name")
      .def("kvctl.runner.has_function", Guarded(HasFunction), "Whether a library has a function")
      .def("kvctl.runner.get_function_names", Guarded(FunctionNames),
           "Names of the functions of a library's virtual machine")
      .def("kvctl.runner.instrument_library", Guarded(InstrumentLibrary),
           "Call a function around every call of a library's virtual machine")
      .def("kvctl.runner.get_library_metadata", Guarded(LibraryMetadata),
           "JSON text of a library's _metadata, or an empty string")
      .def("kvctl.runner.get_library_path", Guarded(LibraryPath), "The file of a library")
      .def("kvctl.runner.load_model", Guarded(LoadModel), "Load a model directory")
      .def("kvctl.runner.prefill", OnStream(Prefill), "Append prompts, in chunks")
      .def("kvctl.runner.decode", OnStream(Decode), "Append one token to each sequence")
      .def("kvctl.runner.verify", OnStream(Verify), "Forward token trees, leaving them pending")
      .def("kvctl.runner.verify_states", OnStream(VerifyStates),
           "Forward token trees; logits and hidden states")
      .def("kvctl.runner.forward_states", OnStream(ForwardStates),
           "Forward tokens under any masks; logits and hidden states")
      .def("kvctl.runner.prefill_states", OnStream(PrefillStates),
           "Append prompts; logits behind them and hidden states")
      .def("kvctl.runner.complete", OnStream(Complete), "Run the other layers of pending rows")
      .def("kvctl.runner.embed", OnStream(Embed), "The rows that enter layer 0")
      .def("kvctl.runner.prefill_embeddings", OnStream(PrefillEmbeddings),
           "Append prompts that are embeddings, in chunks")
      .def("kvctl.runner.gives_hidden", Guarded(GivesHidden),
           "Whether a library gives what the output layer reads")
      .def("kvctl.runner.get_cache", Guarded(CacheOf), "A runner's cache, or None")
      .def("kvctl.runner.get_state", Guarded(StateOf), "A runner's recurrent state, or None")
      .def("kvctl.runner.get_library", Guarded(LibraryOf), "A runner's model library")
      .def("kvctl.runner.get_params", Guarded(ParamsOf), "A runner's parameters")
      .def("kvctl.runner.get_config", Guarded(ConfigOf), "JSON text of mlc-chat-config.json")
      .def("kvctl.runner.get_vocab_size", Guarded(VocabSizeOf), "Size of a model's vocabulary")
      .def("kvctl.runner.get_logit_columns", Guarded(LogitColumnsOf),
           "Length of the rows of logits that a worker computes")
      .def("kvctl.runner.get_num_shards", Guarded(NumShardsOf), "Workers that run a model together")
      .def("kvctl.runner.set_join_logits", Guarded(SetJoinLogits),
           "Whether forwards return on worker 0 the logits of all workers, or each its own")
      .def("kvctl.runner.gather_logits", OnStream(GatherLogits),
           "The logits of all workers, on worker 0")
      .def("kvctl.runner.sample_shards", Guarded(SampleRows),
           "The tokens of rows whose columns lie on several workers, without joining them")
      .def("kvctl.runner.get_prefill_chunk_size", Guarded(PrefillChunkOf),
           "New tokens that one forward takes");
}

}  // namespace kvctl
