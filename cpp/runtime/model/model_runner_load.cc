// From a model directory to a runner.
#include <algorithm>

#include "kernels/linear.h"
#include "kvctl/error.h"
#include "kvctl/model_runner.h"
#include "runtime/model/files/model_files.h"
#include "runtime/model/files/param_loader.h"
#include "runtime/model/files/shard_check.h"
#include "runtime/support/json.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;

/*!
 * \brief kvctl's cache and recurrent state are installed as long as this lives, and afterwards if
 * they were before.
 */
class CacheInstallation {
 public:
  CacheInstallation() : cache_before_(CacheInstalled()), state_before_(RecurrentStateInstalled()) {
    if (!cache_before_) InstallCache();
    if (!state_before_) InstallRecurrentState();
  }
  ~CacheInstallation() {
    if (!cache_before_) UninstallCache();
    if (!state_before_) UninstallRecurrentState();
  }
  CacheInstallation(const CacheInstallation&) = delete;
  CacheInstallation& operator=(const CacheInstallation&) = delete;

 private:
  bool cache_before_;
  bool state_before_;
};

int64_t IntegerOr(const JsonObject& json, const char* key, int64_t fallback) {
  return FindMember<int64_t>(json, key).value_or(fallback);
}

std::string StateKind(const JsonObject& metadata) {
  return FindMember<ffi::String>(metadata, "kv_state_kind").value_or("kv_cache");
}

/*! \brief Refuses models that would run wrongly instead of running them. */
void CheckSupported(const FunctionTable& functions, int64_t shard) {
  const JsonObject& metadata = functions.metadata();
  const std::string& library = functions.path();
  if (metadata.empty()) {
    Throw(ErrorKind::kValue, library, " says nothing about its parameters: it has no _metadata");
  }
  const std::string kind = StateKind(metadata);
  if (kind != "kv_cache" && kind != "rnn_state" && kind != "hybrid") {
    Throw(ErrorKind::kNotImplemented, library, " keeps its state as '", kind,
          "'; the runner runs models that keep a 'kv_cache', an 'rnn_state' or both ('hybrid')");
  }
  if (const int64_t count = IntegerOr(metadata, "pipeline_parallel_stages", 1); count > 1) {
    Throw(ErrorKind::kNotImplemented, library, " is compiled for ", count,
          " devices (pipeline_parallel_stages); the runner runs models on one");
  }
  const int64_t count = IntegerOr(metadata, "tensor_parallel_shards", 1);
  if (count > 1 && shard < 0) {
    Throw(
        ErrorKind::kNotImplemented, library, " is compiled for ", count,
        " devices (tensor_parallel_shards): kvctl.distributed.ModelRunner.load(directory, workers=",
        count, ") runs it");
  }
  if (shard >= 0 && shard >= count) {
    Throw(ErrorKind::kValue, library, " is compiled for ", count,
          " workers, so shard must be from ", "0 to ", count - 1, ", not ", shard);
  }
  auto ours = FindMember<JsonObject>(metadata, "kvctl");
  if (ours && IntegerOr(*ours, "format", 1) != 1) {
    Throw(ErrorKind::kValue, library, " is a kvctl library of format ",
          IntegerOr(*ours, "format", 1), ", this kvctl knows format 1: compile the model again");
  }
}

/*! \brief value, or limit where value is 0; never more than limit, which memory was planned for. */
int64_t WithinLimit(int64_t value, int64_t limit, const char* name, const std::string& library) {
  if (value == 0) value = limit;
  if (value < 1 || value > limit) {
    Throw(ErrorKind::kValue, name, " must be from 1 to ", limit, ", for which ", library,
          " was compiled, got ", value);
  }
  return value;
}

int64_t VocabSize(const JsonObject& config, const std::string& directory) {
  auto size = FindMember<int64_t>(config, "vocab_size");
  if (!size) {
    const JsonObject model = FindMember<JsonObject>(config, "model_config").value_or(JsonObject());
    size = GetMember<int64_t>(model, "vocab_size", directory + "/mlc-chat-config.json");
  }
  return *size;
}

/*! \brief How kvctl splits the model over workers; empty where it does not. */
JsonObject TensorParallelOf(const JsonObject& metadata) {
  const JsonObject ours = FindMember<JsonObject>(metadata, "kvctl").value_or(JsonObject());
  return FindMember<JsonObject>(ours, "tensor_parallel").value_or(JsonObject());
}

/*! \brief Refuses whole sums where a worker's share would be summed otherwise than the whole. */
void CheckWholeSums(const FunctionTable& functions) {
  const JsonObject& metadata = functions.metadata();
  const auto sums = FindMember<ffi::String>(TensorParallelOf(metadata), "sums");
  const auto weights = FindMember<ffi::String>(metadata, "quantization");
  if (sums != ffi::String("whole") || weights != ffi::String("q0f32")) return;
  if (ChooseLinearBackend(WeightType::kFloat32) != LinearBackend::kOneDNN) return;
  Throw(ErrorKind::kValue, functions.path(),
        " is compiled with tensor_parallel_sums whole, which need kvctl's own kernels: "
        "KVCTL_LINEAR=onednn chooses oneDNN, whose order of summing depends on a layer's shape. "
        "Unset it, or compile the model with tensor_parallel_sums partial");
}

/*! \brief What MLC-LLM's engine tells the cache of each sequence of a model with a window. */
struct ModelWindow {
  int64_t size = 0;  //!< sinks and past together, the token itself not counted; 0: none
  int64_t sinks = 0;
};

ModelWindow WindowOf(const FunctionTable& functions, const JsonObject& config) {
  const JsonObject& metadata = functions.metadata();
  const JsonObject model = FindMember<JsonObject>(config, "model_config").value_or(JsonObject());
  ModelWindow window;
  window.size = std::max<int64_t>(IntegerOr(metadata, "sliding_window_size", 0), 0);
  for (const JsonObject* from : {&metadata, &config, &model}) {
    const int64_t sinks = IntegerOr(*from, "attention_sink_size", -1);
    if (sinks < 0) continue;
    window.sinks = sinks;
    break;
  }
  if (window.size > 0 && window.sinks >= window.size) {
    Throw(ErrorKind::kValue, functions.path(), " has a sliding window of ", window.size,
          " tokens with ", window.sinks, " attention sinks; they must be fewer");
  }
  return window;
}

PagedKVCache CreateCache(const FunctionTable& functions, int64_t max_sequences,
                         int64_t max_total_tokens, int64_t chunk, const RunnerOptions& options,
                         const ModelWindow& window) {
  ffi::Any created = functions.create_paged_kv_cache(
      ffi::Shape({max_sequences}), ffi::Shape({max_total_tokens}), ffi::Shape({chunk}),
      ffi::Shape({options.page_size}), ffi::Shape({static_cast<int64_t>(window.size > 0)}));
  auto cache = created.as<PagedKVCache>();
  if (!cache.has_value() || !cache->defined()) {
    Throw(
        ErrorKind::kRuntime, functions.path(), " created a ", created.GetTypeKey(),
        " instead of kvctl's cache: it was loaded before that was installed, and a virtual ",
        "machine keeps the functions that it found when it started. Install kvctl's cache first, ",
        "or give the runner the directory alone");
  }
  const bool retyped = options.kv_dtype.bits > 0 && options.kv_dtype != (*cache)->config().dtype;
  if (retyped || options.kv_scales.has_value()) {
    PagedKVCacheConfig config = (*cache)->config();
    if (retyped) config.dtype = options.kv_dtype;
    config.kv_scales = options.kv_scales;
    cache = PagedKVCache::Create(config);
  }
  // Where layers have windows of their own, the library's says how large those are.
  const PagedKVCacheConfig& config = (*cache)->config();
  if (window.size > 0 && config.layer_windows.empty()) {
    (*cache)->SetDefaultWindow(window.size - window.sinks + 1, window.sinks, kDefaultHorizon,
                               window.sinks > 0 && config.rope_mode != RopeMode::kNone);
  }
  return *cache;
}

/*! \brief What a kvctl library says of its recurrent state; nullopt: another's, for instance MLC's.
 */
std::optional<JsonObject> DescribedState(const FunctionTable& functions) {
  auto ours = FindMember<JsonObject>(functions.metadata(), "kvctl");
  return ours ? FindMember<JsonObject>(*ours, "recurrent") : std::nullopt;
}

/*! \brief The recurrent state that a kvctl library describes, or that another one creates. */
RecurrentState CreateState(const FunctionTable& functions, int64_t max_sequences,
                           const RunnerOptions& options) {
  const auto described = DescribedState(functions);
  if (described) {
    RecurrentStateConfig config;
    config.num_layers = GetMember<int64_t>(*described, "num_layers", functions.path());
    config.max_sequences = max_sequences;
    config.max_history = options.max_history;
    config.max_bytes = options.max_state_bytes;
    config.keep_steps = options.keep_steps;
    config.gives_steps = FindMember<bool>(*described, "emits_steps").value_or(true);
    for (const ffi::Any& state :
         GetMember<ffi::json::Array>(*described, "states", functions.path())) {
      const auto spec = state.cast<JsonObject>();
      std::vector<int64_t> shape;
      for (const ffi::Any& extent : GetMember<ffi::json::Array>(spec, "shape", functions.path())) {
        shape.push_back(extent.cast<int64_t>());
      }
      const auto dtype = GetMember<ffi::String>(spec, "dtype", functions.path());
      const tvm::runtime::Tensor value =
          tvm::runtime::Tensor::Empty(shape, ffi::StringToDLDataType(dtype), functions.device());
      const std::vector<char> zeros(ffi::GetDataSize(*value.operator->()));
      tvm::runtime::Tensor(value).CopyFromBytes(zeros.data(), zeros.size());
      config.init_values.push_back(value);
    }
    return RecurrentState::Create(config);
  }
  if (options.max_state_bytes != 0 || !options.keep_steps) {
    Throw(
        ErrorKind::kValue, functions.path(),
        " creates its recurrent state itself, so max_state_bytes and keep_steps cannot be chosen");
  }
  // TVM's max_history counts the present state.
  ffi::Any created = functions.create_rnn_state(ffi::Shape({max_sequences}),
                                                ffi::Shape({options.max_history + 1}));
  auto state = created.as<RecurrentState>();
  if (!state.has_value() || !state->defined()) {
    Throw(ErrorKind::kRuntime, functions.path(), " created a ", created.GetTypeKey(),
          " instead of kvctl's recurrent state: it was loaded before that was installed. Install ",
          "kvctl first, or give the runner the directory alone");
  }
  return *state;
}

}  // namespace

ModelRunner ModelRunner::Load(const std::string& directory, const RunnerOptions& options) {
  Init(options.device.device_type == kDLCUDA ? "cuda" : "cpu");
  const ModelFiles files = OpenModelFiles(directory);
  CheckLibrary(files);
  CacheInstallation installation;
  return Load(directory, FunctionTable::Load(files.library, options.device), options);
}

ModelRunner ModelRunner::Load(const std::string& directory, const FunctionTable& functions,
                              const RunnerOptions& options) {
  const ModelFiles files = OpenModelFiles(directory);
  CheckSupported(functions, options.shard);
  CheckWholeSums(functions);
  const JsonObject& metadata = functions.metadata();

  ModelRunner runner(functions);
  runner.FindStates();
  runner.config_ = files.config;
  runner.vocab_size_ = VocabSize(files.config, directory);
  runner.shard_ = std::max<int64_t>(options.shard, 0);
  runner.num_shards_ = IntegerOr(metadata, "tensor_parallel_shards", 1);
  runner.logit_columns_ = IntegerOr(TensorParallelOf(metadata), "columns", runner.vocab_size_);
  runner.limit_threads_ = metadata.count(ffi::String("kvctl")) > 0;
  const int64_t chunk_limit = IntegerOr(metadata, "prefill_chunk_size", 2048);
  runner.prefill_chunk_size_ =
      WithinLimit(options.prefill_chunk_size, chunk_limit, "prefill_chunk_size", functions.path());
  runner.context_window_ = IntegerOr(metadata, "context_window_size", -1);
  const int64_t max_sequences =
      WithinLimit(options.max_sequences, IntegerOr(metadata, "max_batch_size", INT32_MAX),
                  "max_sequences", functions.path());
  constexpr int64_t kDefaultTokens = 8192;
  int64_t max_total_tokens = options.max_total_tokens;
  if (max_total_tokens == 0) {
    const int64_t window = runner.context_window_;
    max_total_tokens = window < 1 || window > kDefaultTokens / max_sequences
                           ? kDefaultTokens
                           : window * max_sequences;
  }
  if (max_total_tokens < 1 || options.page_size < 1) {
    Throw(ErrorKind::kValue, "max_total_tokens and page_size must be at least 1, got ",
          max_total_tokens, " and ", options.page_size);
  }
  const std::string kind = StateKind(metadata);
  const char* kv_option = options.kv_dtype.bits > 0       ? "kv_dtype"
                          : options.kv_scales.has_value() ? "kv_scales"
                                                          : nullptr;
  if (kind == "rnn_state" && kv_option != nullptr) {
    Throw(ErrorKind::kValue, functions.path(), " has no K and V, so ", kv_option,
          " cannot be chosen");
  }
  if (kind != "rnn_state") {
    runner.cache_ =
        CreateCache(functions, max_sequences, max_total_tokens, runner.prefill_chunk_size_, options,
                    WindowOf(functions, files.config));
  }
  if (kind != "kv_cache") {
    runner.state_ = CreateState(functions, max_sequences, options);
    runner.one_sequence_per_step_ = !DescribedState(functions);
  }
  WorkerShare worker;
  worker.index = runner.shard_;
  worker.count = runner.num_shards_;
  worker.splits = ReadParamSplits(metadata, runner.shard_, functions.path());
  worker.find = [&](const std::string& name) { return functions.Find(name).packed(); };
  runner.params_ = LoadParams(files, ReadParamSpecs(metadata, functions.path()), functions.device(),
                              worker, options.progress);
  return runner;
}

}  // namespace kvctl
