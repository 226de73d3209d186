// An extension as one was written beside llm_chat.cc in 2024. Only its includes were changed:
//   -#include <tvm/runtime/module.h>
//   -#include <tvm/runtime/packed_func.h>
//   -#include <tvm/runtime/registry.h>
//   +#include "kvctl/registry_compat.h"
#include <memory>
#include <string>
#include <vector>

#include "kvctl/registry_compat.h"

namespace old_extension {

using tvm::Device;
using namespace tvm::runtime;  // NOLINT

/*! \brief Keeps the tokens of one conversation. */
class ChatLog {
 public:
  explicit ChatLog(int window) : window_(window) {}
  void Append(int token) { tokens_.push_back(token); }
  int PopN(int n) {
    CHECK(n >= 0) << "cannot pop " << n << " tokens";
    ICHECK_LE(n, static_cast<int>(tokens_.size()));
    tokens_.resize(tokens_.size() - n);
    return static_cast<int>(tokens_.size());
  }
  int window() const { return window_; }
  const std::vector<int>& tokens() const { return tokens_; }

 private:
  int window_;
  std::vector<int> tokens_;
};

class ChatLogModule : public ModuleNode {
 public:
  explicit ChatLogModule(int window) : log_(std::make_unique<ChatLog>(window)) {}

  const char* type_key() const final { return "old_extension.chat_log"; }

  PackedFunc GetFunction(const String& name, const ObjectPtr<Object>& sptr_to_self) final {
    if (name == "append") {
      return PackedFunc([this, sptr_to_self](TVMArgs args, TVMRetValue* rv) {
        for (int i = 0; i < args.num_args; ++i) {
          log_->Append(args[i]);
        }
        *rv = static_cast<int>(log_->tokens().size());
      });
    } else if (name == "popn") {
      return PackedFunc([this, sptr_to_self](TVMArgs args, TVMRetValue* rv) {
        CHECK_EQ(args.size(), 1);
        *rv = log_->PopN(args[0]);
      });
    } else if (name == "tokens") {
      return PackedFunc([this, sptr_to_self](TVMArgs, TVMRetValue* rv) {
        *rv = ShapeTuple(log_->tokens().begin(), log_->tokens().end());
      });
    } else {
      return PackedFunc(nullptr);
    }
  }

 private:
  std::unique_ptr<ChatLog> log_;
};

TVM_REGISTER_GLOBAL("old_extension.create").set_body_typed([](int window) {
  ObjectPtr<ChatLogModule> n = make_object<ChatLogModule>(window);
  return Module(n);
});

TVM_REGISTER_GLOBAL("old_extension.describe").set_body([](TVMArgs args, TVMRetValue* rv) {
  std::string name = args[0];
  int count = args[1];
  double temperature = args[2];
  bool greedy = args[3];
  *rv = name + ":" + std::to_string(count) + ":" + (greedy ? "greedy" : "sampled") + ":" +
        std::to_string(static_cast<int>(temperature * 10));
});

String Greet(const String& who) { return "hello " + who; }
TVM_REGISTER_GLOBAL("old_extension.greet").set_body_typed(Greet).describe("Says hello.");

TVM_REGISTER_GLOBAL("old_extension.element_count").set_body_typed([](NDArray array) -> int64_t {
  Device host{kDLCPU, 0};
  ICHECK_EQ(array->device.device_type, host.device_type) << "on the host only";
  int64_t count = 1;
  for (int i = 0; i < array->ndim; ++i) count *= array->shape[i];
  return count;
});

TVM_REGISTER_GLOBAL("old_extension.call_twice").set_body([](TVMArgs args, TVMRetValue* rv) {
  PackedFunc f = args[0];
  int once = f(args[1]);
  *rv = f(once);
});

TVM_REGISTER_GLOBAL("old_extension.echo").set_body([](TVMArgs args, TVMRetValue* rv) {
  *rv = args[0];
});

TVM_REGISTER_GLOBAL("old_extension.forget").set_body_typed([](Module module) {
  PackedFunc popn = module->GetFunction("popn");
  ICHECK(module->GetFunction("absent") == nullptr);
  const PackedFunc* echo = Registry::Get("old_extension.echo");
  ICHECK(echo != nullptr) << "not registered";
  int n = (*echo)(1);
  popn(n);
});

}  // namespace old_extension
