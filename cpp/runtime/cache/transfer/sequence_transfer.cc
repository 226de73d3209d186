// Sequences saved and loaded whole, and ranges of their tokens.
#include "runtime/cache/transfer/sequence_transfer.h"

#include <algorithm>
#include <memory>

#include "core/support/narrow.h"
#include "kvctl/error.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

using tvm::ffi::Shape;
using tvm::runtime::Tensor;

SequenceRecord ToRecord(const SavedSequence& saved) {
  SequenceRecord record;
  record.num_committed = Narrow(saved.length, "length");
  record.next_position = Narrow(saved.next_position, "next_position");
  record.window = {Narrow(saved.window_size, "window_size"), Narrow(saved.sinks, "sinks"),
                   Narrow(saved.horizon, "horizon"), saved.renumber_sinks,
                   saved.reports_held_length};
  record.evicted = {Narrow(saved.evicted_begin, "evicted_begin"),
                    Narrow(saved.evicted_end, "evicted_end")};
  if (saved.positions.has_value()) {
    const auto* data =
        TensorData<const int32_t>(saved.positions.value(), "positions", {saved.length});
    record.positions = std::make_shared<std::vector<int32_t>>(data, data + saved.length);
  }
  return record;
}

/*! \brief Everything but K and V. */
SavedSequence FromRecord(const SequenceRecord& record) {
  SavedSequence saved;
  saved.length = record.num_committed;
  saved.next_position = record.next_position;
  saved.window_size = record.window.size;
  saved.sinks = record.window.sinks;
  saved.horizon = record.window.rollback_window;
  saved.renumber_sinks = record.window.renumber_sinks;
  saved.reports_held_length = record.window.reports_held_length;
  saved.evicted_begin = record.evicted.begin;
  saved.evicted_end = record.evicted.end;
  if (record.positions != nullptr) {
    Tensor positions = Tensor::Empty({saved.length}, {kDLInt, 32, 1}, kHostDevice);
    std::copy(record.positions->begin(), record.positions->end(),
              static_cast<int32_t*>(DataPointer(positions.operator->())));
    saved.positions = positions;
  }
  return saved;
}

/*! \brief The rotary position of a token; between begin_forward and end_forward only pending
 * tokens lie behind the committed ones. */
int32_t PositionOf(const Sequence& sequence, int32_t kv_index) {
  const int32_t pending = kv_index - sequence.num_committed;
  return pending < 0 ? sequence.PositionOf(kv_index) : sequence.pending.positions[pending];
}

}  // namespace

std::vector<int32_t> SequenceTransfer::Slots(int64_t seq_id, int64_t begin, int64_t end) const {
  const Sequence& sequence = table_.Get(seq_id);
  if (begin < 0 || begin > end || end > sequence.reported_length()) {
    Throw(ErrorKind::kIndex, "tokens [", begin, ", ", end, ") are not in sequence ", seq_id,
          ", which has ", sequence.reported_length());
  }
  std::vector<int32_t> slots;
  slots.reserve(end - begin);
  for (int64_t i = begin; i < end; ++i) {
    const int32_t kv_index = sequence.KvIndexOf(static_cast<int32_t>(i));
    if (sequence.evicted.begin <= kv_index && kv_index < sequence.evicted.end) {
      Throw(ErrorKind::kIndex, "token ", kv_index, " of sequence ", seq_id,
            " was evicted by its sliding window");
    }
    slots.push_back(table_.Slot(sequence, kv_index));
  }
  return slots;
}

std::vector<int32_t> SequenceTransfer::HeldSlots(int64_t seq_id) const {
  const Sequence& sequence = table_.Get(seq_id);
  std::vector<int32_t> slots;
  for (int32_t kv_index = 0; kv_index < sequence.num_committed; ++kv_index) {
    const bool evicted = sequence.evicted.begin <= kv_index && kv_index < sequence.evicted.end;
    if (!evicted) slots.push_back(table_.Slot(sequence, kv_index));
  }
  return slots;
}

void SequenceTransfer::CheckKV(const Tensor& kv, const char* what, int64_t length) const {
  CheckTensor(kv.operator->(), what, config_.device,
              {config_.num_layers, length, config_.num_kv_heads, config_.head_dim});
  FloatDType(kv.DataType(), what);
}

Shape SequenceTransfer::StoredShape(int64_t length) const {
  return {config_.num_layers, length, config_.num_kv_heads, PageShapeOf(config_).row_elements()};
}

SavedSequence SequenceTransfer::Save(int64_t seq_id) const {
  SavedSequence saved = FromRecord(table_.Record(seq_id, "save_sequence"));
  const std::vector<int32_t> slots = HeldSlots(seq_id);
  const Shape shape = StoredShape(static_cast<int64_t>(slots.size()));
  saved.k = Tensor::Empty(shape, config_.dtype, config_.device);
  saved.v = Tensor::Empty(shape, config_.dtype, config_.device);
  backend_.ReadSlots(slots, saved.k, saved.v);
  return saved;
}

void SequenceTransfer::Load(int64_t seq_id, const SavedSequence& saved) {
  const SequenceRecord record = ToRecord(saved);
  const int64_t evicted = std::max<int64_t>(int64_t{record.evicted.end} - record.evicted.begin, 0);
  const Shape shape = StoredShape(record.num_committed - evicted);
  CheckTensor(saved.k.operator->(), "k", config_.device, shape);
  CheckTensor(saved.v.operator->(), "v", config_.device, shape);
  if (saved.k.DataType() != config_.dtype || saved.v.DataType() != config_.dtype) {
    Throw(ErrorKind::kType, "k and v must be of the cache's type");
  }
  table_.Restore(seq_id, record);
  try {
    const std::vector<int32_t> slots = HeldSlots(seq_id);
    std::vector<int32_t> positions;
    for (int32_t kv_index = 0; kv_index < record.num_committed; ++kv_index) {
      if (record.evicted.begin <= kv_index && kv_index < record.evicted.end) continue;
      positions.push_back(record.positions ? (*record.positions)[kv_index] : kv_index);
    }
    backend_.WriteSlots(slots, positions, saved.k, saved.v);
  } catch (...) {  // a model library's rotation, out of host memory
    table_.Remove(seq_id);
    throw;
  }
}

void SequenceTransfer::ReadTokens(int64_t seq_id, int64_t begin, int64_t end, const Tensor& k,
                                  const Tensor& v) const {
  const std::vector<int32_t> slots = Slots(seq_id, begin, end);
  CheckKV(k, "k_data", end - begin);
  CheckKV(v, "v_data", end - begin);
  backend_.ReadSlots(slots, k, v);
}

void SequenceTransfer::WriteTokens(int64_t seq_id, int64_t begin, const Tensor& k,
                                   const Tensor& v) {
  if (k->ndim != 4) Throw(ErrorKind::kValue, "k_data must have 4 dimensions, got ", k->ndim);
  const int64_t length = k->shape[1];
  const std::vector<int32_t> slots = Slots(seq_id, begin, begin + length);
  CheckKV(k, "k_data", length);
  CheckKV(v, "v_data", length);
  for (int32_t slot : slots) {
    if (table_.pool().shared(slot / table_.config().page_size)) {
      Throw(ErrorKind::kRuntime, "tokens of sequence ", seq_id,
            " lie in a page that another sequence or a checkpoint shares; they cannot be set");
    }
  }
  std::vector<int32_t> positions;
  const Sequence& sequence = table_.Get(seq_id);
  for (int64_t i = begin; i < begin + length; ++i) {
    positions.push_back(PositionOf(sequence, sequence.KvIndexOf(static_cast<int32_t>(i))));
  }
  backend_.WriteSlots(slots, positions, k, v);
}

}  // namespace kvctl
