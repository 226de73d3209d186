// The step in flight of a RecurrentState: what the model reads and what it leaves.
#include <algorithm>
#include <utility>

#include "core/support/narrow.h"
#include "runtime/recurrent/recurrent_state.h"
#include "runtime/support/new_parents.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

void RecurrentStateImpl::CheckTrees(const std::vector<StepRequest>& requests) const {
  if (gives_steps_) return;
  for (const StepRequest& request : requests) {
    if (request.parents == nullptr || !table_.Contains(request.seq_id)) continue;
    const int32_t old = table_.Get(request.seq_id).num_pending();
    for (int32_t row = 1; row < request.append_length; ++row) {
      if (request.parents[row] == old + row - 1) continue;
      Throw(ErrorKind::kValue, "begin_forward: the new tokens of sequence ", request.seq_id,
            " form a tree (node ", old + row, " hangs on ", request.parents[row],
            "), and the model's recurrent layers give only the state after the last token of a ",
            "chain; forward a chain, or compile a model that computes a state per token");
    }
  }
}

void RecurrentStateImpl::Begin(const std::vector<StepRequest>& requests) {
  CheckTrees(requests);
  StepLengths lengths;
  for (const StepRequest& request : requests) {
    const bool there = table_.Contains(request.seq_id);
    lengths.seq_ids.push_back(request.seq_id);
    lengths.appended.push_back(request.append_length);
    lengths.before.push_back(there ? table_.Get(request.seq_id).total() : -1);
  }
  if (!table_.in_forward()) partner_.Check(lengths);
  table_.BeginForward(requests);
  partner_.Begin(std::move(lengths));
  written_.assign(storage_.size(), Written::kNot);
}

void RecurrentStateImpl::BeginForward(const std::vector<StepRequest>& requests) {
  WithLock([&] {
    std::vector<StepRequest> resolved = requests;
    for (StepRequest& request : resolved) {
      const RecurrentSequence& sequence = table_.Get(request.seq_id);
      ResolveTree(&request, sequence.num_pending(),
                  [&](int32_t node) { return sequence.pending[node].parent; });
    }
    Begin(resolved);
  });
}

void RecurrentStateImpl::BeginForward(const Shape& seq_ids, const Shape& append_lengths,
                                      const tvm::ffi::Optional<Shape>& parents) {
  WithLock([&] {
    if (seq_ids.size() != append_lengths.size()) {
      Throw(ErrorKind::kValue, "begin_forward: ", seq_ids.size(), " sequences but ",
            append_lengths.size(), " append lengths");
    }
    int64_t total = 0;
    for (int64_t length : append_lengths) total += std::max<int64_t>(length, 0);
    std::vector<int32_t> flat;
    if (parents.has_value()) {
      if (static_cast<int64_t>(parents.value().size()) != total) {
        Throw(ErrorKind::kValue, "begin_forward: ", total, " new tokens but ",
              parents.value().size(), " parents");
      }
      for (int64_t parent : parents.value())
        flat.push_back(Narrow(parent, "begin_forward: a parent"));
    }
    std::vector<StepRequest> requests(seq_ids.size());
    int64_t begin = 0;
    for (size_t i = 0; i < seq_ids.size(); ++i) {
      StepRequest& request = requests[i];
      request.seq_id = seq_ids[i];
      request.append_length = append_lengths[i];
      bool pending = table_.Get(seq_ids[i]).num_pending() > 0;  // new nodes of a pending region
      if (parents.has_value()) {
        request.parents = flat.data() + begin;
        // A chain is committed when the forward ends, as TVM does it; a tree waits for its commit.
        for (int64_t row = 0; row < append_lengths[i]; ++row) {
          pending |= request.parents[row] != row - 1;
        }
      }
      request.pending = pending;
      begin += append_lengths[i];
    }
    Begin(requests);
  });
}

StepOutcome RecurrentStateImpl::Outcome() const {
  size_t not_written = 0;
  size_t final_only = 0;
  size_t missing = 0;
  for (size_t i = 0; i < written_.size(); ++i) {
    if (written_[i] == Written::kNot) {
      ++not_written;
      missing = i;
    }
    final_only += written_[i] == Written::kFinal;
  }
  if (not_written == written_.size()) return StepOutcome::kNothing;
  if (not_written > 0) {
    const size_t states = config_.init_values.size();
    Throw(ErrorKind::kRuntime, "end_forward: the forward set other states, but not state ",
          missing % states, " of layer ", missing / states,
          "; run the whole model before end_forward, or call abort_forward");
  }
  return final_only > 0 ? StepOutcome::kFinal : StepOutcome::kSteps;
}

void RecurrentStateImpl::CheckEndForward() const {
  WithLock(
      [&] {
        Step("end_forward");
        Outcome();
      },
      WhenBusy::kWait);
}

void RecurrentStateImpl::EndForward() {
  WithLock(
      [&] {
        Step("end_forward");
        table_.EndForward(Outcome());
        partner_.End();
      },
      WhenBusy::kWait);
}

void RecurrentStateImpl::AbortForward() {
  WithLock(
      [&] {
        table_.AbortForward();
        partner_.End();
      },
      WhenBusy::kWait);
}

const RecurrentStep& RecurrentStateImpl::Step(const char* operation) const {
  if (!table_.in_forward()) {
    Throw(ErrorKind::kRuntime, operation, " needs a forward in flight; call begin_forward first");
  }
  return table_.step();
}

const RecurrentStateImpl::Tensor& RecurrentStateImpl::Storage(int64_t layer_id,
                                                              int64_t state_id) const {
  const int64_t states = static_cast<int64_t>(config_.init_values.size());
  if (layer_id < 0 || layer_id >= config_.num_layers) {
    Throw(ErrorKind::kIndex, "there is no layer ", layer_id, "; the recurrent state has ",
          config_.num_layers);
  }
  if (state_id < 0 || state_id >= states) {
    Throw(ErrorKind::kIndex, "there is no state ", state_id, "; each layer has ", states);
  }
  return storage_[layer_id * states + state_id];
}

void RecurrentStateImpl::CheckRows(const Tensor& tensor, const char* what, int64_t rows,
                                   int64_t state_id) const {
  const Tensor& init = config_.init_values[state_id];
  std::vector<int64_t> shape = {rows};
  shape.insert(shape.end(), init.Shape().begin(), init.Shape().end());
  const std::string name = std::string(what) + " of state " + std::to_string(state_id);
  CheckTensor(tensor.operator->(), name.c_str(), init->device, {shape.data(), shape.size()});
  CheckDType(tensor.operator->(), name.c_str(), init->dtype);
}

void RecurrentStateImpl::CopyRoots(const RecurrentStep& step, int64_t layer_id, int64_t state_id,
                                   const Tensor& out) const {
  const Tensor& storage = Storage(layer_id, state_id);
  CheckRows(out, "the output", step.num_roots(), state_id);
  std::vector<RowMove> moves;
  for (int32_t root = 0; root < step.num_roots(); ++root) {
    moves.push_back({step.root_state_indices[root], root});
  }
  CopyRows(storage, out, row_bytes_[state_id], moves);
}

void RecurrentStateImpl::Get(int64_t layer_id, int64_t state_id, Tensor out) {
  WithLock([&] {
    const RecurrentStep& step = Step("get");
    if (step.root_state_indices.size() != step.sequences.size()) {
      Throw(ErrorKind::kValue,
            "get: the step grows a tree from several pending nodes, so a "
            "sequence has several states to start from; the model must use "
            "kvctl.recurrent.get_roots");
    }
    CopyRoots(step, layer_id, state_id, out);
  });
}

int64_t RecurrentStateImpl::NumRoots() const {
  return WithLock([&] { return static_cast<int64_t>(Step("num_roots").num_roots()); });
}

void RecurrentStateImpl::GetRoots(int64_t layer_id, int64_t state_id, Tensor out) {
  WithLock([&] { CopyRoots(Step("get_roots"), layer_id, state_id, out); });
}

void RecurrentStateImpl::GetRows(bool steps, Tensor out) {
  WithLock([&] {
    const RecurrentStep& step = Step("get_rows");
    const int64_t rows = step.num_rows();
    const bool fits = out.Shape().size() == 2 && out->shape[0] == 2 && out->shape[1] == rows;
    if (!fits) {
      Throw(ErrorKind::kValue, "the output of get_rows must have shape (2, ", rows, "), got ",
            ShapeText(out.Shape()));
    }
    CheckDType(out.operator->(), "the output of get_rows", DLDataTypeOf<int32_t>());
    if (!steps && !step.all_chains()) {
      Throw(ErrorKind::kValue,
            "the step holds a token tree, whose nodes have states of their own: the "
            "model must compute a state per token (kvctl.recurrent.set_steps); take the step back "
            "with abort_forward");
    }
    std::vector<int32_t> table(2 * rows);
    for (int64_t row = 0; row < rows; ++row) {
      const int32_t source = step.row_sources[row];
      const int32_t root = step.row_roots[row];
      table[row] = steps || source < 0 ? source : root;
      table[rows + row] = steps ? static_cast<int32_t>(row) : root;
    }
    out.CopyFromBytes(table.data(), table.size() * sizeof(int32_t));
  });
}

void RecurrentStateImpl::Set(int64_t layer_id, int64_t state_id, Tensor data) {
  WithLock([&] {
    const RecurrentStep& step = Step("set");
    const Tensor& storage = Storage(layer_id, state_id);
    if (!step.all_chains()) {
      Throw(ErrorKind::kValue,
            "set: the step holds a token tree, whose nodes have states of their own: "
            "the model must compute a state per token (kvctl.recurrent.set_steps); take the step "
            "back with abort_forward");
    }
    CheckRows(data, "the data", static_cast<int64_t>(step.sequences.size()), state_id);
    std::vector<RowMove> moves;
    for (size_t i = 0; i < step.sequences.size(); ++i) {
      const RecurrentStep::PlannedSequence& sequence = step.sequences[i];
      const int32_t state_index =
          step.row_state_indices[sequence.row_begin + sequence.num_rows - 1];
      moves.push_back({static_cast<int32_t>(i), state_index});
    }
    CopyRows(data, storage, row_bytes_[state_id], moves);
    written_[layer_id * config_.init_values.size() + state_id] = Written::kFinal;
  });
}

void RecurrentStateImpl::SetSteps(int64_t layer_id, int64_t state_id, Tensor data) {
  WithLock([&] {
    const RecurrentStep& step = Step("set_steps");
    const Tensor& storage = Storage(layer_id, state_id);
    CheckRows(data, "the data", step.num_rows(), state_id);
    std::vector<RowMove> moves;
    for (int32_t row = 0; row < step.num_rows(); ++row) {
      if (step.row_state_indices[row] >= 0) moves.push_back({row, step.row_state_indices[row]});
    }
    CopyRows(data, storage, row_bytes_[state_id], moves);
    written_[layer_id * config_.init_values.size() + state_id] = Written::kSteps;
    gives_steps_ = true;
  });
}

}  // namespace kvctl
