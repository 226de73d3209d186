#include "runtime/recurrent/recurrent_state.h"

#include <tvm/ffi/cast.h>

#include <algorithm>
#include <limits>

#include "runtime/support/device.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

namespace {

using tvm::runtime::Tensor;

size_t TensorBytes(const Tensor& tensor) { return tvm::ffi::GetDataSize(*tensor.operator->()); }

RecurrentStateConfig Checked(RecurrentStateConfig config) {
  if (config.num_layers < 1) {
    Throw(ErrorKind::kValue, "num_layers must be at least 1, got ", config.num_layers);
  }
  if (config.max_sequences < 1) {
    Throw(ErrorKind::kValue, "max_sequences must be at least 1, got ", config.max_sequences);
  }
  if (config.max_history < 0) {
    Throw(ErrorKind::kValue, "max_history must be at least 0, got ", config.max_history);
  }
  if (config.max_bytes < 0) {
    Throw(ErrorKind::kValue, "max_bytes must be at least 0 (0: no bound), got ", config.max_bytes);
  }
  if (config.init_values.empty()) {
    Throw(ErrorKind::kValue, "a layer must have at least 1 state, got no initial values");
  }
  tvm::ffi::Array<Tensor> own;  // copies: the caller may change or free what it handed over
  for (const Tensor& init : config.init_values) {
    if (!SameDevice(init->device, config.init_values[0]->device)) {
      Throw(ErrorKind::kValue, "the initial values of the states must lie on one device");
    }
    if (!tvm::ffi::IsContiguous(*init.operator->())) {
      Throw(ErrorKind::kValue, "the initial values of the states must be contiguous");
    }
    if (TensorBytes(init) == 0 || init->dtype.bits % 8 != 0) {
      Throw(ErrorKind::kValue, "a state must have at least 1 element of whole bytes");
    }
    Tensor copy = Tensor::Empty(init.Shape(), init->dtype, init->device);
    copy.CopyFrom(init);
    own.push_back(copy);
  }
  config.init_values = own;
  return config;
}

RecurrentConfig TableConfigOf(const RecurrentStateConfig& config) {
  double state_bytes = 0;
  for (const Tensor& init : config.init_values) {
    state_bytes += static_cast<double>(TensorBytes(init)) * static_cast<double>(config.num_layers);
  }
  // Every sequence can keep its whole history while a step computes as many states again: then no
  // abort has anything to bring back.
  double num_states = 2.0 * static_cast<double>(config.max_sequences) *
                      (static_cast<double>(config.max_history) + 1);
  if (config.max_bytes > 0) num_states = static_cast<double>(config.max_bytes) / state_bytes;
  if (num_states < 2) {
    Throw(ErrorKind::kValue, "max_bytes must hold at least 2 states of ", state_bytes,
          " bytes, got ", config.max_bytes);
  }
  constexpr double kMost = std::numeric_limits<int32_t>::max() - 1;
  if (num_states > kMost || config.max_sequences > kMost || config.max_history > kMost) {
    Throw(ErrorKind::kValue, "max_sequences = ", config.max_sequences,
          ", max_history = ", config.max_history, " and max_bytes = ", config.max_bytes,
          " ask for more than ", kMost, " states");
  }
  RequireMemory(config.init_values[0]->device, num_states * state_bytes, "the recurrent state");
  return {static_cast<int32_t>(num_states), static_cast<int32_t>(config.max_sequences),
          static_cast<int32_t>(config.max_history), config.keep_steps};
}

}  // namespace

RecurrentStateImpl::RecurrentStateImpl(const RecurrentStateConfig& config)
    : config_(Checked(config)), table_(TableConfigOf(config_)), gives_steps_(config_.gives_steps) {
  for (const Tensor& init : config_.init_values) row_bytes_.push_back(TensorBytes(init));
  const int64_t num_states = table_.pool().size();
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    for (const Tensor& init : config_.init_values) {
      std::vector<int64_t> shape = {num_states};
      shape.insert(shape.end(), init.Shape().begin(), init.Shape().end());
      storage_.push_back(Tensor::Empty(shape, init->dtype, init->device));
      CopyRows(init, storage_.back(), TensorBytes(init), {{0, 0}});
    }
  }
  written_.assign(storage_.size(), Written::kNot);
}

void RecurrentStateImpl::CopyRows(const Tensor& source, const Tensor& target, size_t row_bytes,
                                  const std::vector<RowMove>& moves) const {
  const DLTensor* from = source.operator->();
  const DLTensor* to = target.operator->();
  if (to->device.device_type == kDLCPU) {
    CopyRowsCpu(static_cast<const char*>(from->data) + from->byte_offset,
                static_cast<char*>(to->data) + to->byte_offset, moves.data(),
                static_cast<int64_t>(moves.size()), row_bytes);
    return;
  }
  int64_t size = static_cast<int64_t>(row_bytes);
  for (const RowMove& move : moves) {
    DLTensor row_from = *from;
    row_from.ndim = 1;
    row_from.dtype = {kDLUInt, 8, 1};
    row_from.shape = &size;
    row_from.strides = nullptr;
    DLTensor row_to = row_from;
    row_to.data = to->data;
    row_to.device = to->device;
    row_from.byte_offset = from->byte_offset + move.source * row_bytes;
    row_to.byte_offset = to->byte_offset + move.target * row_bytes;
    Tensor::CopyFromTo(&row_from, &row_to);
  }
}

// Sequences ---------------------------------------------------------------------------------------

void RecurrentStateImpl::Clear() {
  WithLock([&] {
    table_.AbortForward();
    partner_.End();
    table_.Clear();
  });
}
void RecurrentStateImpl::AddSequence(int64_t seq_id) {
  WithLock([&] { table_.Add(seq_id); });
}
void RecurrentStateImpl::RemoveSequence(int64_t seq_id) {
  WithLock([&] { table_.Remove(seq_id); }, WhenBusy::kWait);
}
int64_t RecurrentStateImpl::Fork(int64_t parent, int64_t child, int64_t position) {
  return WithLock([&] { return table_.Fork(parent, child, position); });
}

void RecurrentStateImpl::ForkSequence(int64_t parent, int64_t child, int64_t position) {
  WithLock([&] {
    const int64_t replay = table_.Fork(parent, child, position);
    if (replay == 0) return;
    table_.Remove(child);
    Throw(ErrorKind::kValue, "fork_sequence: no state is kept at position ", position,
          " of sequence ", parent, ", the last one before it is at ", position - replay,
          "; kvctl.recurrent.fork_sequence forks there and returns how many tokens to run again");
  });
}

int64_t RecurrentStateImpl::Pop(int64_t seq_id, int64_t n) {
  return WithLock([&] { return table_.PopN(seq_id, n); });
}

void RecurrentStateImpl::Restart(int64_t seq_id) {
  WithLock([&] { table_.Restart(seq_id); });
}

void RecurrentStateImpl::PopN(int64_t seq_id, int32_t n) {
  WithLock([&] {
    const RollbackTarget target_state = table_.PlanPopN(seq_id, n);
    if (target_state.replay > 0) {
      Throw(ErrorKind::kValue, "popn: no state is kept at position ",
            target_state.position + target_state.replay, " of sequence ", seq_id,
            ", the last one before it is at ", target_state.position,
            "; kvctl.recurrent.popn goes back there and returns how many tokens to run again");
    }
    table_.PopN(seq_id, n);
  });
}

RecurrentRollbackTarget RecurrentStateImpl::PlanPop(int64_t seq_id, int64_t n) const {
  return WithLock([&] {
    const RollbackTarget target_state = table_.PlanPopN(seq_id, n);
    return RecurrentRollbackTarget{target_state.position, target_state.num_pending,
                                   target_state.replay};
  });
}

std::vector<int32_t> RecurrentStateImpl::Commit(const std::vector<int64_t>& seq_ids,
                                                const std::vector<std::vector<int32_t>>& kept) {
  return WithLock([&] { return table_.Commit(seq_ids, kept); });
}
std::vector<int32_t> RecurrentStateImpl::PlanCommit(
    const std::vector<int64_t>& seq_ids, const std::vector<std::vector<int32_t>>& kept) const {
  return WithLock([&] { return table_.PlanCommit(seq_ids, kept); });
}
void RecurrentStateImpl::DropPending(int64_t seq_id) {
  WithLock([&] { table_.DropPending({seq_id}); }, WhenBusy::kWait);
}

void RecurrentStateImpl::DropPending(const std::vector<int64_t>& seq_ids) {
  WithLock([&] { table_.DropPending(seq_ids); }, WhenBusy::kWait);
}

// Queries -----------------------------------------------------------------------------------------

int64_t RecurrentStateImpl::SequenceLength(int64_t seq_id) const {
  return WithLock([&] {
    const RecurrentSequence& sequence = table_.Get(seq_id);
    return sequence.total();
  });
}
int64_t RecurrentStateImpl::PendingLength(int64_t seq_id) const {
  return WithLock([&] { return static_cast<int64_t>(table_.Get(seq_id).num_pending()); });
}
int64_t RecurrentStateImpl::EarliestPosition(int64_t seq_id) const {
  return WithLock([&] { return table_.EarliestPosition(seq_id); });
}

int64_t RecurrentStateImpl::NumFreeStates() const {
  return WithLock([&] { return int64_t{table_.pool().num_free()}; });
}

int64_t RecurrentStateImpl::StateBytes() const {
  size_t bytes = 0;
  for (size_t row : row_bytes_) bytes += row;
  return static_cast<int64_t>(bytes) * config_.num_layers;
}

Tensor RecurrentStateImpl::DebugGet(int64_t layer_id, int64_t state_id, int64_t seq_id) {
  return GetState(seq_id, -1, layer_id, state_id);
}

Tensor RecurrentStateImpl::GetState(int64_t seq_id, int64_t position, int64_t layer_id,
                                    int64_t state_id) const {
  return WithLock([&] {
    const Tensor& storage = Storage(layer_id, state_id);
    const RecurrentSequence& sequence = table_.Get(seq_id);
    const int64_t total = sequence.length() + sequence.num_pending();
    int32_t state_index = -1;
    if (position == -1) position = sequence.length();
    if (position > sequence.length() && position <= total) {
      state_index = sequence.pending[position - sequence.length() - 1].state_index;
    } else if (position <= sequence.length()) {
      const int32_t index = sequence.FindAtOrBefore(position);
      if (index >= 0 && sequence.history[index].position == position) {
        state_index = sequence.history[index].state_index;
      }
    }
    if (state_index < 0) {
      Throw(ErrorKind::kIndex, "no state is kept at position ", position, " of sequence ", seq_id,
            " of length ", sequence.length(), " with ", sequence.num_pending(), " pending tokens");
    }
    const Tensor& init = config_.init_values[state_id];
    Tensor result = Tensor::Empty(init.Shape(), init->dtype, init->device);
    CopyRows(storage, result, row_bytes_[state_id], {{state_index, 0}});
    return result;
  });
}

RecurrentState RecurrentState::Create(const RecurrentStateConfig& config) {
  return Guard([&] { return RecurrentState(tvm::ffi::make_object<RecurrentStateImpl>(config)); });
}

}  // namespace kvctl
