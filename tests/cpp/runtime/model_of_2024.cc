// The functions that a compiled model of 2024 gave to a chat module: a language model of one layer
// without weights, on kvctl's KV cache, written with the API of that year.
#include <cmath>
#include <string>
#include <vector>

#include "kvctl/registry_compat.h"

namespace old_model {

using namespace tvm::runtime;  // NOLINT
using tvm::Device;

constexpr int kVocabSize = 40;
constexpr int kHeadDim = 16;
const Device kHost{kDLCPU, 0};

float Embedding(int token, int d) { return std::sin(31.0f * token + 3.0f * d); }

/*! \brief What a library without an own file is: a module with a table of functions. */
class ModelModule : public ModuleNode {
 public:
  NDArray Prefill(NDArray tokens, ObjectRef kv_cache, Array<NDArray> params) {
    ICHECK_EQ(params.size(), 1u) << "the model has one parameter";
    return Forward(tokens, kv_cache, params[0]);
  }

  NDArray Decode(NDArray tokens, ObjectRef kv_cache, Array<NDArray> params) {
    CHECK_EQ(tokens->shape[1], 1) << "decode takes one token";
    return Forward(tokens, kv_cache, params[0]);
  }

  ObjectRef CreateKVCache(IntTuple max_sequences, IntTuple max_tokens, IntTuple chunk,
                          IntTuple page_size) {
    const PackedFunc* create = Registry::Get("kvctl.cache.create_for_model");
    ICHECK(create != nullptr) << "libkvctl.so is not loaded";
    const IntTuple sizes{max_sequences[0], max_tokens[0], chunk[0], page_size[0], 0};
    return (*create)(sizes, 1, 1, 1, kHeadDim, 0, 1.0, 10000.0,
                     NDArray::Empty({}, DataType::Float(32), kHost));
  }

  String Metadata() const noexcept { return "{\"vocab_size\": 40, \"context_window\": 64}"; }

  void Softmax(TVMArgs args, TVMRetValue* rv) {
    NDArray logits = args[0];
    const double temperature = args[1].operator double();
    ICHECK_GT(temperature, 0.0);
    ICHECK(logits.DataType() == DataType::Float(32)) << "got " << logits.DataType();
    NDArray probs = NDArray::Empty(logits.Shape(), logits->dtype, kHost);
    const float* from = static_cast<const float*>(logits->data);
    float* to = static_cast<float*>(probs->data);
    double sum = 0;
    for (int i = 0; i < kVocabSize; ++i) sum += to[i] = std::exp(from[i] / temperature);
    for (int i = 0; i < kVocabSize; ++i) to[i] /= sum;
    *rv = probs;
  }

  TVM_MODULE_VTABLE_BEGIN("old_model.model");
  TVM_MODULE_VTABLE_ENTRY("prefill", &ModelModule::Prefill);
  TVM_MODULE_VTABLE_ENTRY("decode", &ModelModule::Decode);
  TVM_MODULE_VTABLE_ENTRY("create_kv_cache", &ModelModule::CreateKVCache);
  TVM_MODULE_VTABLE_ENTRY("get_metadata", &ModelModule::Metadata);
  TVM_MODULE_VTABLE_ENTRY_PACKED("softmax", &ModelModule::Softmax);
  TVM_MODULE_VTABLE_END();

 private:
  NDArray Forward(const NDArray& tokens, const ObjectRef& kv_cache, const NDArray& scale) {
    ICHECK_EQ(tokens->ndim, 2);
    const int64_t n = tokens->shape[1];
    const int32_t* ids = static_cast<const int32_t*>(tokens->data);
    NDArray qkv = NDArray::Empty({n, 3, kHeadDim}, DataType::Float(32), kHost);
    NDArray out = NDArray::Empty(ShapeTuple({n, 1, kHeadDim}), qkv->dtype, qkv->device);
    for (int64_t i = 0; i < n * 3 * kHeadDim; ++i) {
      static_cast<float*>(qkv->data)[i] = Embedding(ids[i / (3 * kHeadDim)], i % kHeadDim);
    }
    static const PackedFunc attend =
        *Registry::Get("vm.builtin.attention_kv_cache_attention_with_fused_qkv");
    attend(kv_cache, 0, 1.0, qkv, out);

    NDArray logits = NDArray::Empty({1, 1, kVocabSize}, DataType::Float(32), kHost);
    const float* hidden = static_cast<const float*>(out->data) + (n - 1) * kHeadDim;
    for (int v = 0; v < kVocabSize; ++v) {
      float sum = 0;
      for (int d = 0; d < kHeadDim; ++d) {
        sum += (hidden[d] + Embedding(ids[n - 1] + 1, d)) * Embedding(v, d);
      }
      static_cast<float*>(logits->data)[v] = sum * static_cast<const float*>(scale->data)[0];
    }
    return logits;
  }
};

TVM_REGISTER_GLOBAL("old_model.load").set_body_typed([]() {
  return Module(make_object<ModelModule>());
});

TVM_REGISTER_GLOBAL("old_model.load_params").set_body([](TVMArgs args, TVMRetValue* rv) {
  Device device{static_cast<DLDeviceType>(args[0].operator int()), args[1]};
  NDArray scale = NDArray::Empty({1}, DataType::Float(32), device);
  const float value = 0.75f;
  scale.CopyFromBytes(&value, sizeof(value));
  *rv = Array<NDArray>{scale};
});

}  // namespace old_model

// What a library of one's own exports, found by Module::LoadFromFile.
TVM_DLL_EXPORT_TYPED_FUNC(old_model_vocab_size,
                          [](int shards) noexcept { return old_model::kVocabSize / shards; });
TVM_DLL_EXPORT_PACKED_FUNC(old_model_count,
                           [](tvm::runtime::TVMArgs args, tvm::runtime::TVMRetValue* rv) {
                             *rv = args.num_args;
                           });
