#include "core/recurrent/recurrent_table.h"

#include <algorithm>
#include <utility>

#include "kvctl/error.h"

namespace kvctl {

namespace {
constexpr int32_t kInitialState = 0;
}

RecurrentTable::RecurrentTable(const RecurrentConfig& config)
    : config_(config), pool_(config.max_states + 1) {
  pool_.Take();  // the initial state, which the table holds for good
}

const RecurrentSequence& RecurrentTable::Get(int64_t id) const {
  auto it = sequences_.find(id);
  if (it == sequences_.end()) {
    Throw(ErrorKind::kKey, "there is no sequence ", id, " in the recurrent state");
  }
  return it->second;
}

RecurrentSequence& RecurrentTable::Find(int64_t id) {
  return const_cast<RecurrentSequence&>(Get(id));
}

int64_t RecurrentTable::EarliestPosition(int64_t id) const {
  const RecurrentSequence& sequence = Get(id);
  return std::max(sequence.history.front().position, sequence.length() - config_.max_history);
}

std::vector<int32_t> RecurrentTable::CountReferences() const {
  std::vector<int32_t> counts(pool_.size(), 0);
  auto count = [&counts](int32_t state_index) {
    if (state_index >= 0) ++counts[state_index];
  };
  count(kInitialState);
  for (const auto& item : sequences_) {
    for (const Snapshot& snapshot : item.second.history) count(snapshot.state_index);
    for (const PendingState& node : item.second.pending) count(node.state_index);
  }
  for (const auto& item : checkpoints_) {
    count(item.second.present.state_index);
    for (const PendingState& node : item.second.pending) count(node.state_index);
  }
  if (active_) {
    for (int32_t state_index : step_.row_state_indices) count(state_index);
  }
  return counts;
}

void RecurrentTable::RequireNoForward(const char* operation) const {
  if (active_) {
    Throw(
        ErrorKind::kRuntime, operation,
        " is not possible between begin_forward and end_forward; call end_forward or abort first");
  }
}

void RecurrentTable::CheckNewId(int64_t id) const {
  if (Contains(id)) {
    Throw(ErrorKind::kValue, "sequence ", id, " is already in the recurrent state");
  }
  if (static_cast<int64_t>(sequences_.size()) >= config_.max_sequences) {
    Throw(ErrorKind::kRuntime, "the recurrent state holds ", sequences_.size(),
          " sequences, the most it was created for (max_sequences); remove one first");
  }
}

void RecurrentTable::Clear() {
  RequireNoForward("clear");
  sequences_.clear();
  checkpoints_.clear();
  pool_.Clear();
  pool_.Take();
}

void RecurrentTable::Add(int64_t id) {
  RequireNoForward("add_sequence");
  CheckNewId(id);
  RecurrentSequence sequence;
  sequence.history.push_back({0, kInitialState, next_stamp_});
  sequences_.emplace(id, std::move(sequence));
  ++next_stamp_;
  Hold(kInitialState);
}

void RecurrentTable::Remove(int64_t id) {
  RequireNoForward("remove_sequence");
  RecurrentSequence& sequence = Find(id);
  for (auto it = checkpoints_.begin(); it != checkpoints_.end();) {
    const int64_t checkpoint = it->first;
    const bool own = it->second.sequence_id == id;
    ++it;
    if (own) ReleaseCheckpoint(checkpoint);
  }
  TruncatePending(&sequence, 0);
  TruncateHistory(&sequence, 0);
  sequences_.erase(id);
}

void RecurrentTable::TruncateHistory(RecurrentSequence* sequence, size_t count) {
  while (sequence->history.size() > count) {
    Drop(sequence->history.back().state_index);
    sequence->history.pop_back();
  }
}

void RecurrentTable::TruncatePending(RecurrentSequence* sequence, int32_t count) {
  while (sequence->num_pending() > count) {
    Drop(sequence->pending.back().state_index);
    sequence->pending.pop_back();
  }
}

void RecurrentTable::TrimHistory(RecurrentSequence* sequence) {
  // A state serves the targets from its own position up to the next one's: it can go as soon as the
  // next one is already at or before the farthest target.
  const int64_t farthest = sequence->length() - config_.max_history;
  size_t count = 0;
  while (count + 1 < sequence->history.size() &&
         sequence->history[count + 1].position <= farthest) {
    Drop(sequence->history[count].state_index);
    ++count;
  }
  sequence->history.erase(sequence->history.begin(), sequence->history.begin() + count);
}

RollbackTarget RecurrentTable::PlanRollback(int64_t id, int64_t target,
                                            const char* operation) const {
  const RecurrentSequence& sequence = Get(id);
  const int32_t index = sequence.FindAtOrBefore(target);
  if (index < 0 || sequence.length() - target > config_.max_history) {
    Throw(ErrorKind::kValue, operation, ": sequence ", id, " of length ", sequence.length(),
          " cannot go back to position ", target, "; the states kept reach back to position ",
          EarliestPosition(id), " (max_history is ", config_.max_history, " tokens)");
  }
  const int64_t position = sequence.history[index].position;
  return {position, 0, target - position};
}

int64_t RecurrentTable::Fork(int64_t parent_id, int64_t child_id, int64_t position) {
  RequireNoForward("fork_sequence");
  const RecurrentSequence& parent = Get(parent_id);
  CheckNewId(child_id);
  const int64_t total = parent.length() + parent.num_pending();
  if (position == -1) position = total;
  if (position < 0 || position > total) {
    Throw(ErrorKind::kIndex, "fork_sequence: position must be within [0, ", total,
          "], the tokens of sequence ", parent_id, ", or -1 for all of them; got ", position);
  }
  if (position == 0) {  // as good as new, whatever the parent still remembers
    Add(child_id);
    return 0;
  }
  RollbackTarget target_state{parent.length(), static_cast<int32_t>(position - parent.length()), 0};
  if (position < parent.length()) target_state = PlanRollback(parent_id, position, "fork_sequence");

  const int32_t last = parent.FindAtOrBefore(target_state.position);
  RecurrentSequence child;
  child.history.assign(parent.history.begin(), parent.history.begin() + last + 1);
  child.pending.assign(parent.pending.begin(), parent.pending.begin() + target_state.num_pending);
  RecurrentSequence& placed = sequences_.emplace(child_id, std::move(child)).first->second;
  for (const Snapshot& snapshot : placed.history) Hold(snapshot.state_index);
  for (const PendingState& node : placed.pending) Hold(node.state_index);
  return target_state.replay;
}

RollbackTarget RecurrentTable::PlanPopN(int64_t id, int64_t n) const {
  RequireNoForward("popn");
  const RecurrentSequence& sequence = Get(id);
  const int64_t total = sequence.length() + sequence.num_pending();
  if (n < 0 || n > total) {
    Throw(ErrorKind::kValue, "popn: n must be within [0, ", total, "], the tokens of sequence ", id,
          "; got ", n);
  }
  if (n <= sequence.num_pending()) {
    return {sequence.length(), static_cast<int32_t>(sequence.num_pending() - n), 0};
  }
  return PlanRollback(id, total - n, "popn");
}

int64_t RecurrentTable::PopN(int64_t id, int64_t n) {
  const RollbackTarget target_state = PlanPopN(id, n);
  RecurrentSequence& sequence = Find(id);
  TruncatePending(&sequence, target_state.num_pending);
  TruncateHistory(&sequence, sequence.FindAtOrBefore(target_state.position) + 1);
  return target_state.replay;
}

void RecurrentTable::Restart(int64_t id) {
  RequireNoForward("restart");
  RecurrentSequence& sequence = Find(id);
  TruncatePending(&sequence, 0);
  Hold(kInitialState);
  TruncateHistory(&sequence, 0);
  sequence.history.push_back({0, kInitialState, next_stamp_++});
}

void RecurrentTable::DropPending(const std::vector<int64_t>& ids) {
  RequireNoForward("abort");
  for (int64_t id : ids) Find(id);  // so that nothing below can throw
  for (int64_t id : ids) TruncatePending(&Find(id), 0);
}

int64_t RecurrentTable::MakeCheckpoint(int64_t id) {
  RequireNoForward("checkpoint");
  const RecurrentSequence& sequence = Get(id);
  const auto it = checkpoints_
                      .emplace(next_checkpoint_, Checkpoint{id, sequence.history.back(),
                                                            sequence.pending, next_stamp_})
                      .first;
  ++next_checkpoint_;
  Hold(it->second.present.state_index);
  for (const PendingState& node : it->second.pending) Hold(node.state_index);
  return it->first;
}

void RecurrentTable::CheckCheckpoint(int64_t id, int64_t checkpoint) const {
  RequireNoForward("rollback");
  Get(id);
  auto it = checkpoints_.find(checkpoint);
  if (it == checkpoints_.end()) {
    Throw(ErrorKind::kValue, "rollback: the checkpoint is gone with the sequence it was made of");
  }
  if (it->second.sequence_id != id) {
    Throw(ErrorKind::kValue, "rollback: the checkpoint was made of sequence ",
          it->second.sequence_id, ", not of sequence ", id);
  }
}

void RecurrentTable::Rollback(int64_t id, int64_t checkpoint) {
  CheckCheckpoint(id, checkpoint);
  const Checkpoint& saved = checkpoints_.at(checkpoint);
  RecurrentSequence& sequence = Find(id);

  // A state that was there when the checkpoint was made, and still is, is the checkpoint's past:
  // one that went and came again has a later stamp.
  size_t shared = 0;
  while (shared < sequence.history.size() && sequence.history[shared].stamp < saved.made_at &&
         sequence.history[shared].position < saved.present.position) {
    ++shared;
  }
  std::vector<PendingState> pending = saved.pending;
  sequence.history.reserve(shared + 1);
  Hold(saved.present.state_index);
  for (const PendingState& node : pending) Hold(node.state_index);
  TruncatePending(&sequence, 0);
  TruncateHistory(&sequence, shared);
  sequence.history.push_back({saved.present.position, saved.present.state_index, next_stamp_++});
  sequence.pending = std::move(pending);
}

void RecurrentTable::ReleaseCheckpoint(int64_t checkpoint) {
  auto it = checkpoints_.find(checkpoint);
  if (it == checkpoints_.end()) return;
  Drop(it->second.present.state_index);
  for (const PendingState& node : it->second.pending) Drop(node.state_index);
  checkpoints_.erase(it);
}

}  // namespace kvctl
