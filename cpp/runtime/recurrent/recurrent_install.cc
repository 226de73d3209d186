// kvctl's recurrent state behind the function through which model libraries create theirs.
#include <tvm/ffi/function.h>

#include "kvctl/error.h"
#include "kvctl/recurrent_state.h"
#include "runtime/support/guard.h"
#include "runtime/support/replaced_function.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;

ReplacedFunction& CreateFunction() {
  static auto* function = new ReplacedFunction("vm.builtin.rnn_state_create");  // never destroyed
  return *function;
}

/*!
 * \brief TVM's arguments. Its max_history counts the present state, so that max_history - 1 tokens
 * can be rolled back; its getters and setters index TVM's layout of histories, and kvctl copies
 * rows by itself.
 */
RecurrentState CreateForModel(int64_t num_layers, int64_t max_sequences, int64_t max_history,
                              const ffi::Array<ffi::Function>& getters,
                              const ffi::Array<ffi::Function>& setters,
                              const ffi::Array<tvm::runtime::Tensor>& init_values) {
  if (max_history < 1) {
    Throw(ErrorKind::kValue, "max_history must be at least 1 (the present state), got ",
          max_history);
  }
  if (getters.size() != init_values.size() || setters.size() != init_values.size()) {
    Throw(ErrorKind::kValue, "a layer has ", init_values.size(), " states, but ", getters.size(),
          " getters and ", setters.size(), " setters were given");
  }
  RecurrentStateConfig config;
  config.num_layers = num_layers;
  config.max_sequences = max_sequences;
  config.max_history = max_history - 1;
  config.gives_steps = false;  // TVM's setters take the last state alone
  config.init_values = init_values;
  return RecurrentState::Create(config);
}

}  // namespace

void InstallRecurrentState() {
  Guard([] { CreateFunction().Install(ffi::Function::FromTyped(Guarded(CreateForModel))); });
}

void UninstallRecurrentState() {
  Guard([] { CreateFunction().Uninstall(); });
}

bool RecurrentStateInstalled() { return CreateFunction().installed(); }

}  // namespace kvctl
