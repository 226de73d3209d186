// "kvctl.recurrent.*": what the recurrent state does beyond vm.builtin.kv_state_* and rnn_state_*.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/reflection/registry.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "core/support/narrow.h"
#include "ffi/mask_argument.h"
#include "kvctl/recurrent_state.h"
#include "runtime/support/guard.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

/*! \brief Sizes and bounds of a recurrent state. */
class RecurrentFactsObj : public ffi::Object {
 public:
  int64_t state_bytes = 0;      //!< of one kept state, all layers together
  int64_t max_states = 0;       //!< states that fit
  int64_t num_free_states = 0;  //!< states that fit beside those kept now
  int64_t max_history = 0;
  bool keep_steps = false;
  int64_t num_layers = 0;
  int64_t num_states = 0;  //!< of a layer

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.RecurrentFacts", RecurrentFactsObj, ffi::Object);
};

class RecurrentFacts : public ffi::ObjectRef {
 public:
  explicit RecurrentFacts(const RecurrentState& state) {
    const RecurrentStateConfig& config = state->config();
    ffi::ObjectPtr<RecurrentFactsObj> facts = ffi::make_object<RecurrentFactsObj>();
    facts->state_bytes = state->StateBytes();
    facts->max_states = state->MaxStates();
    facts->num_free_states = state->NumFreeStates();
    facts->max_history = config.max_history;
    facts->keep_steps = config.keep_steps;
    facts->num_layers = config.num_layers;
    facts->num_states = static_cast<int64_t>(config.init_values.size());
    data_ = std::move(facts);
  }
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(RecurrentFacts, ffi::ObjectRef, RecurrentFactsObj);
};

std::vector<std::vector<int32_t>> Paths(const ffi::Array<ffi::Shape>& kept) {
  std::vector<std::vector<int32_t>> paths;
  for (const ffi::Shape& one : kept) {
    std::vector<int32_t>& path = paths.emplace_back();
    for (int64_t node : one) path.push_back(Narrow(node, "a kept node", ErrorKind::kIndex));
  }
  return paths;
}

std::vector<int64_t> Ids(const ffi::Shape& seq_ids) { return {seq_ids.begin(), seq_ids.end()}; }

ffi::Shape ToShape(const std::vector<int32_t>& counts) {
  return ffi::Shape(std::vector<int64_t>(counts.begin(), counts.end()));
}

RecurrentState Create(int64_t num_layers, int64_t max_sequences, int64_t max_history,
                      int64_t max_bytes, bool keep_steps, const ffi::Array<Tensor>& init_values) {
  RecurrentStateConfig config;
  config.num_layers = num_layers;
  config.max_sequences = max_sequences;
  config.max_history = max_history;
  config.max_bytes = max_bytes;
  config.keep_steps = keep_steps;
  config.init_values = init_values;
  return RecurrentState::Create(config);
}

/*! \brief What kvctl's own compiled models call; sizes (max_sequences, max_history) are TVM's. */
RecurrentState CreateForModel(const ffi::Shape& sizes, int64_t num_layers,
                              const ffi::Array<Tensor>& init_values) {
  if (sizes.size() != 2 || sizes[1] < 1) {
    Throw(ErrorKind::kValue,
          "create_rnn_state takes max_batch_size and max_history_size, at least 1");
  }
  return Create(num_layers, sizes[0], sizes[1] - 1, 0, true, init_values);
}

/*! \brief parents: per sequence its tree, or nullopt for a chain. */
void BeginForward(const RecurrentState& state, const ffi::Shape& seq_ids,
                  const ffi::Shape& append_lengths, const ffi::Shape& pending,
                  const ffi::Optional<ffi::Array<ffi::Optional<ffi::Shape>>>& parents) {
  const size_t batch = seq_ids.size();
  if (append_lengths.size() != batch || pending.size() != batch ||
      (parents.has_value() && parents.value().size() != batch)) {
    Throw(ErrorKind::kValue, "begin_forward names ", batch, " sequences and gives ",
          append_lengths.size(), " append lengths, ", pending.size(), " pending flags and ",
          parents.has_value() ? parents.value().size() : batch, " lists of parents");
  }
  std::vector<StepRequest> requests(batch);
  for (size_t i = 0; i < batch; ++i) {
    requests[i].seq_id = seq_ids[i];
    requests[i].append_length = append_lengths[i];
    requests[i].pending = pending[i] != 0;
    if (!parents.has_value() || !parents.value()[i].has_value()) continue;
    std::vector<int32_t> tree;
    for (int64_t parent : parents.value()[i].value()) {
      tree.push_back(Narrow(parent, "a parent", ErrorKind::kIndex));
    }
    requests[i].mask = Mask::Tree(std::move(tree));
  }
  state->BeginForward(requests);
}

/*! \brief Parents of the pending region under an encoded mask, or nullopt where it holds no tree.
 */
ffi::Optional<ffi::Shape> MaskParents(const Tensor& encoded) {
  const Mask mask = DecodeMask(encoded);
  if (mask.tree_parents() == nullptr) return std::nullopt;
  return ToShape(*mask.tree_parents());
}

void EndForward(const RecurrentState& state) { state->EndForward(); }
void CheckEndForward(const RecurrentState& state) { state->CheckEndForward(); }
void AbortForward(const RecurrentState& state) { state->AbortForward(); }
bool InForward(const RecurrentState& state) { return state->InForward(); }

int64_t NumRoots(const RecurrentState& state) { return state->NumRoots(); }
ffi::Shape RootShape(const RecurrentState& state) { return ffi::Shape({state->NumRoots()}); }
void GetRoots(const RecurrentState& state, int64_t layer_id, int64_t state_id, const Tensor& out) {
  state->GetRoots(layer_id, state_id, out);
}
void GetRows(const RecurrentState& state, bool steps, const Tensor& out) {
  state->GetRows(steps, out);
}
RecurrentState SetSteps(const RecurrentState& state, int64_t layer_id, int64_t state_id,
                        const Tensor& data) {
  state->SetSteps(layer_id, state_id, data);
  return state;
}

int64_t Fork(const RecurrentState& state, int64_t parent, int64_t child, int64_t position) {
  return state->Fork(parent, child, position);
}
int64_t PopN(const RecurrentState& state, int64_t seq_id, int64_t n) {
  return state->Pop(seq_id, n);
}
void Restart(const RecurrentState& state, int64_t seq_id) { state->Restart(seq_id); }
ffi::Shape PlanPopN(const RecurrentState& state, int64_t seq_id, int64_t n) {
  const RecurrentRollbackTarget target_state = state->PlanPop(seq_id, n);
  return ffi::Shape({target_state.length, target_state.pending, target_state.replay});
}
ffi::Shape Commit(const RecurrentState& state, const ffi::Shape& seq_ids,
                  const ffi::Array<ffi::Shape>& kept) {
  return ToShape(state->Commit(Ids(seq_ids), Paths(kept)));
}
ffi::Shape PlanCommit(const RecurrentState& state, const ffi::Shape& seq_ids,
                      const ffi::Array<ffi::Shape>& kept) {
  return ToShape(state->PlanCommit(Ids(seq_ids), Paths(kept)));
}
void DropPending(const RecurrentState& state, const ffi::Shape& seq_ids) {
  state->DropPending(Ids(seq_ids));
}
RecurrentCheckpoint MakeCheckpoint(const RecurrentState& state, int64_t seq_id) {
  return state->MakeCheckpoint(seq_id);
}
void Rollback(const RecurrentState& state, int64_t seq_id, const RecurrentCheckpoint& checkpoint) {
  state->Rollback(seq_id, checkpoint);
}
void CheckRollback(const RecurrentState& state, int64_t seq_id,
                   const RecurrentCheckpoint& checkpoint) {
  state->CheckRollback(seq_id, checkpoint);
}

bool HasSequence(const RecurrentState& state, int64_t seq_id) { return state->HasSequence(seq_id); }
int64_t SequenceLength(const RecurrentState& state, int64_t seq_id) {
  return state->SequenceLength(seq_id);
}
int64_t PendingLength(const RecurrentState& state, int64_t seq_id) {
  return state->PendingLength(seq_id);
}
int64_t EarliestPosition(const RecurrentState& state, int64_t seq_id) {
  return state->EarliestPosition(seq_id);
}
Tensor GetState(const RecurrentState& state, int64_t seq_id, int64_t position, int64_t layer_id,
                int64_t state_id) {
  return state->GetState(seq_id, position, layer_id, state_id);
}
RecurrentFacts Facts(const RecurrentState& state) { return RecurrentFacts(state); }
bool IsOurs(const ffi::ObjectRef& state) {
  return state.defined() && state->IsInstance<RecurrentStateObj>();
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::ObjectDef<RecurrentFactsObj>()
      .def_ro("state_bytes", &RecurrentFactsObj::state_bytes)
      .def_ro("max_states", &RecurrentFactsObj::max_states)
      .def_ro("num_free_states", &RecurrentFactsObj::num_free_states)
      .def_ro("max_history", &RecurrentFactsObj::max_history)
      .def_ro("keep_steps", &RecurrentFactsObj::keep_steps)
      .def_ro("num_layers", &RecurrentFactsObj::num_layers)
      .def_ro("num_states", &RecurrentFactsObj::num_states);
  refl::GlobalDef()
      .def("kvctl.recurrent.create", Guarded(Create), "A recurrent state")
      .def("kvctl.recurrent.create_for_model", Guarded(CreateForModel),
           "The recurrent state of a compiled model")
      .def("kvctl.recurrent.begin_forward", Guarded(BeginForward), "Begin a step")
      .def("kvctl.recurrent.get_mask_parents", Guarded(MaskParents),
           "Parents of the tree in an encoded mask")
      .def("kvctl.recurrent.end_forward", Guarded(EndForward), "End the step in flight")
      .def("kvctl.recurrent.check_end_forward", Guarded(CheckEndForward),
           "Throw what end_forward would throw")
      .def("kvctl.recurrent.abort_forward", Guarded(AbortForward), "Take the step in flight back")
      .def("kvctl.recurrent.is_in_forward", Guarded(InForward), "Whether a step is in flight")
      .def("kvctl.recurrent.get_num_roots", Guarded(NumRoots), "States that new tokens start from")
      .def("kvctl.recurrent.root_shape", Guarded(RootShape), "The shape (num_roots,)")
      .def("kvctl.recurrent.get_roots", Guarded(GetRoots), "Copy the roots' states (for models)")
      .def("kvctl.recurrent.get_rows", Guarded(GetRows),
           "Which state each new token reads and writes (for models)")
      .def("kvctl.recurrent.set_steps", Guarded(SetSteps),
           "Hand over the state after every new token (for models)")
      .def("kvctl.recurrent.fork_sequence", Guarded(Fork), "Fork; returns tokens to run again")
      .def("kvctl.recurrent.popn", Guarded(PopN), "Take tokens back; returns tokens to run again")
      .def("kvctl.recurrent.restart", Guarded(Restart), "Take every token back")
      .def("kvctl.recurrent.plan_popn", Guarded(PlanPopN),
           "Where popn would land: length, pending, tokens to run again")
      .def("kvctl.recurrent.commit", Guarded(Commit),
           "Commit paths of pending tokens; returns tokens to run again")
      .def("kvctl.recurrent.plan_commit", Guarded(PlanCommit), "What commit would return")
      .def("kvctl.recurrent.drop_pending", Guarded(DropPending), "Drop pending tokens")
      .def("kvctl.recurrent.checkpoint", Guarded(MakeCheckpoint), "A point to return to")
      .def("kvctl.recurrent.rollback", Guarded(Rollback), "Return to a checkpoint")
      .def("kvctl.recurrent.check_rollback", Guarded(CheckRollback), "Throw where rollback would")
      .def("kvctl.recurrent.has_sequence", Guarded(HasSequence), "Whether a sequence exists")
      .def("kvctl.recurrent.get_sequence_length", Guarded(SequenceLength),
           "Tokens, pending counted")
      .def("kvctl.recurrent.get_pending_length", Guarded(PendingLength), "Pending tokens")
      .def("kvctl.recurrent.get_earliest_position", Guarded(EarliestPosition),
           "The earliest length to roll back to")
      .def("kvctl.recurrent.get_state", Guarded(GetState), "A copy of a kept state")
      .def("kvctl.recurrent.get_facts", Guarded(Facts), "Sizes and bounds")
      .def("kvctl.recurrent.is_ours", Guarded(IsOurs), "Whether an object is a RecurrentState")
      .def("kvctl.recurrent.install", Guarded(InstallRecurrentState),
           "Put kvctl's state behind vm.builtin.rnn_state_create")
      .def("kvctl.recurrent.uninstall", Guarded(UninstallRecurrentState), "Put TVM's back")
      .def("kvctl.recurrent.is_installed", Guarded(RecurrentStateInstalled), "Whether it is there");
}

}  // namespace kvctl
