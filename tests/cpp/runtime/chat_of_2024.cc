// A chat module as one was written in 2024: it loads a model's functions, keeps a conversation in
// the KV cache, samples, takes tokens back. Only its includes are of today.
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kvctl/registry_compat.h"

namespace old_chat {

using namespace tvm::runtime;  // NOLINT

/*! \brief The functions of a model and of the runtime that a chat calls. */
struct FunctionTable {
  void Init(TVMArgValue reload_lib, DLDevice device) {
    Module executable{nullptr};
    if (reload_lib.type_code() == kTVMModuleHandle) {
      executable = reload_lib.operator Module();
    } else {
      String path = reload_lib.operator String();
      LOG(FATAL) << "no library " << path << " in this test";
    }
    mod_get_func = [executable](const std::string& name) -> PackedFunc {
      PackedFunc func = executable->GetFunction(name, false);
      return func;
    };
    auto prefill = executable->GetFunction("prefill");
    ICHECK(prefill.defined()) << "the library has no prefill";
    prefill_func = prefill;
    decode_func = mod_get_func("decode");
    softmax_func = mod_get_func("softmax");
    get_metadata_func = mod_get_func("get_metadata");
    ICHECK(mod_get_func("absent") == nullptr);

    add_sequence_func = GetGlobal("vm.builtin.kv_state_add_sequence");
    begin_forward_func = GetGlobal("vm.builtin.kv_state_begin_forward");
    end_forward_func = GetGlobal("vm.builtin.kv_state_end_forward");
    popn_func = GetGlobal("vm.builtin.kv_state_popn");
    clear_func = GetGlobal("vm.builtin.kv_state_clear");
    sample_func = GetGlobal("vm.builtin.sample_top_p_from_prob");
    params =
        GetGlobal("old_model.load_params")(static_cast<int>(device.device_type), device.device_id);
  }

  static PackedFunc GetGlobal(const std::string& name) {
    const auto* f = Registry::Get(name);
    CHECK(f != nullptr) << "there is no function " << name;
    return *f;
  }

  TypedPackedFunc<PackedFunc(const std::string&)> mod_get_func;
  PackedFunc prefill_func, decode_func, softmax_func, get_metadata_func, sample_func;
  PackedFunc add_sequence_func, begin_forward_func, end_forward_func, popn_func, clear_func;
  Array<NDArray> params;
};

class Chat {
  friend class ChatModule;

 public:
  explicit Chat(DLDevice device) : device_(device) {}

  void Reload(TVMArgValue reload_lib, String settings = "") {
    ft_.Init(reload_lib, device_);
    ObjectRef metadata = ft_.get_metadata_func();
    const std::string text = std::string(Downcast<String>(metadata));
    ICHECK_NE(text.find("context_window"), std::string::npos) << text;
    if (settings.size() != 0) temperature_ = std::stof(settings);
    kv_cache_ = ft_.mod_get_func("create_kv_cache")(IntTuple{1}, IntTuple{max_window_size_},
                                                    IntTuple{16}, IntTuple{4});
    Reset();
  }

  void Reset() {
    ft_.clear_func(kv_cache_);
    ft_.add_sequence_func(kv_cache_, 0);
    token_ids_.clear();
  }

  /*! \brief Runs tokens and samples the one after them. */
  int Step(const std::vector<int32_t>& tokens) {
    ICHECK_LE(token_ids_.size() + tokens.size(), static_cast<size_t>(max_window_size_));
    const IntTuple seq_ids({0});
    ft_.begin_forward_func(kv_cache_, seq_ids, ShapeTuple{static_cast<int64_t>(tokens.size())});
    const PackedFunc& run = tokens.size() == 1 ? ft_.decode_func : ft_.prefill_func;
    NDArray logits = run(InputTokens(tokens), kv_cache_, ft_.params);
    ft_.end_forward_func(kv_cache_);
    token_ids_.insert(token_ids_.end(), tokens.begin(), tokens.end());
    return SampleFromLogits(logits);
  }

  /*! \brief Takes the last n tokens back. */
  void PopN(int n) {
    CHECK_GE(n, 0) << "cannot take back " << n << " tokens";
    CHECK_LE(n, static_cast<int>(token_ids_.size()));
    ft_.popn_func(kv_cache_, 0, n);
    token_ids_.resize(token_ids_.size() - n);
  }

 private:
  NDArray InputTokens(const std::vector<int32_t>& tokens) {
    if (!input_tokens_.defined()) {
      input_tokens_ = NDArray::Empty({1, max_window_size_}, DataType::Int(32), device_);
    }
    ICHECK_LE(tokens.size(), static_cast<size_t>(input_tokens_->shape[1]));
    NDArray view = input_tokens_.CreateView(ShapeTuple({1, static_cast<int64_t>(tokens.size())}),
                                            input_tokens_->dtype);
    if (tokens.size() > 0) view.CopyFromBytes(tokens.data(), tokens.size() * sizeof(int32_t));
    return view;
  }

  void UpdateLogitsOnCPU(NDArray logits) {
    if (!logits_on_cpu_.defined()) {
      logits_on_cpu_ = logits.CopyTo(DLDevice{kDLCPU, 0});
    } else {
      ICHECK_EQ(logits_on_cpu_->shape[2], logits->shape[2]);
      logits_on_cpu_.CopyFrom(logits);
    }
    TVMSynchronize(device_.device_type, device_.device_id, nullptr);
  }

  int32_t SampleFromLogits(NDArray logits) {
    UpdateLogitsOnCPU(logits);
    ICHECK(logits_on_cpu_.defined()) << "there are no logits";
    ICHECK_EQ(logits_on_cpu_->ndim, 3);
    NDArray probs = ft_.softmax_func(logits_on_cpu_, temperature_);
    return ft_.sample_func(probs, 0.9, std::uniform_real_distribution<double>(0, 1)(random_));
  }

  DLDevice device_;
  FunctionTable ft_;
  int64_t max_window_size_ = 64;
  float temperature_ = 0.7f;
  std::mt19937 random_{1};
  ObjectRef kv_cache_{nullptr};
  NDArray input_tokens_{nullptr}, logits_on_cpu_{nullptr};
  std::vector<int32_t> token_ids_;
};

class ChatModule : public ModuleNode {
 public:
  void Init(DLDevice device) { device_ = device; }

  PackedFunc GetFunction(const String& name, const ObjectPtr<Object>& sptr_to_self) final {
    if (name == "reload") {
      return PackedFunc([this, sptr_to_self](TVMArgs args, TVMRetValue*) {
        ICHECK(1 <= args.size() && args.size() <= 2);
        chat_ = std::make_unique<Chat>(Chat(device_));
        if (args.size() == 1) {
          chat_->Reload(args[0]);
        } else {
          chat_->Reload(args[0], args[1]);
        }
      });
    } else if (name == "generate") {
      return PackedFunc([this, sptr_to_self](TVMArgs args, TVMRetValue* rv) {
        ShapeTuple prompt = args[0];
        const int max_tokens = args[1];
        std::vector<int64_t> text;
        int token = GetChat()->Step({prompt.begin(), prompt.end()});
        for (int i = 0; i < max_tokens; ++i) {
          text.push_back(token);
          token = GetChat()->Step({token});
        }
        *rv = ShapeTuple(text);
      });
    } else if (name == "popn") {
      return PackedFunc([this, sptr_to_self](TVMArgs args, TVMRetValue* rv) {
        CHECK_EQ(args.size(), 1);
        GetChat()->PopN(args[0]);
        *rv = static_cast<int64_t>(GetChat()->token_ids_.size());
      });
    } else if (name == "seed") {
      return PackedFunc([this, sptr_to_self](TVMArgs args, TVMRetValue*) {
        GetChat()->random_.seed(args[0].operator int());
      });
    } else if (name == "reset_chat") {
      return PackedFunc([this, sptr_to_self](TVMArgs, TVMRetValue*) { GetChat()->Reset(); });
    } else {
      return PackedFunc(nullptr);
    }
  }

  Chat* GetChat() {
    ICHECK(chat_ != nullptr) << "call reload first";
    return chat_.get();
  }

  const char* type_key() const final { return "old_chat.chat"; }

 private:
  std::unique_ptr<Chat> chat_;
  DLDevice device_;
};

Module CreateChatModule(DLDevice device) {
  ObjectPtr<ChatModule> n = make_object<ChatModule>();
  n->Init(device);
  return Module(n);
}

TVM_REGISTER_GLOBAL("old_chat.create").set_body_typed([](int device_type, int device_id) {
  return CreateChatModule(DLDevice{static_cast<DLDeviceType>(device_type), device_id});
});

}  // namespace old_chat
