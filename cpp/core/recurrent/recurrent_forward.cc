// The step in flight of a recurrent state, and what becomes of its pending nodes.
#include <algorithm>
#include <limits>
#include <unordered_set>
#include <utility>

#include "core/recurrent/recurrent_table.h"
#include "core/support/narrow.h"
#include "kvctl/error.h"

namespace kvctl {

void RecurrentTable::ValidateRequest(const StepRequest& request,
                                     const RecurrentSequence& sequence) const {
  if (request.append_length < 1) {
    Throw(ErrorKind::kValue, "begin_forward: sequence ", request.seq_id,
          " must append at least 1 token, got ", request.append_length);
  }
  Narrow(request.append_length, "begin_forward: append length");
  const bool pending = request.AppendsPending();
  const int32_t old = sequence.num_pending();
  if (!pending && old > 0) {
    Throw(ErrorKind::kValue, "begin_forward: sequence ", request.seq_id, " has ", old,
          " pending tokens; commit or abort them, or append pending tokens");
  }
  for (int32_t row = 0; request.parents != nullptr && row < request.append_length; ++row) {
    const int32_t parent = request.parents[row];
    if (parent < -1 || parent >= old + row) {
      Throw(ErrorKind::kIndex, "begin_forward: the parent of pending node ", old + row,
            " of sequence ", request.seq_id, " must be -1 or a node before it, got ", parent);
    }
    if (!pending && parent != row - 1) {
      Throw(ErrorKind::kValue, "begin_forward: the new tokens of sequence ", request.seq_id,
            " form a tree (node ", row, " hangs on ", parent, "), so they must be pending");
    }
  }
}

void RecurrentTable::PlanRows(const StepRequest& request, const RecurrentSequence& sequence,
                              RecurrentStep* step) const {
  const auto num_rows = static_cast<int32_t>(request.append_length);
  const bool pending = request.AppendsPending();
  const int32_t old = sequence.num_pending();
  const int32_t row_begin = step->num_rows();
  std::vector<int32_t> root_of(old + 1, -1);  // root for the committed state, then each old node
  bool chain = true;
  for (int32_t row = 0; row < num_rows; ++row) {
    const int32_t parent = request.parents != nullptr ? request.parents[row] : old + row - 1;
    step->node_parents.push_back(parent);
    if (row > 0 && parent != old + row - 1) chain = false;
    if (parent >= old) {
      const int32_t source = row_begin + parent - old;
      step->row_sources.push_back(source);
      step->row_roots.push_back(step->row_roots[source]);
      continue;
    }
    int32_t& root = root_of[parent + 1];
    if (root < 0) {
      const int32_t state_index = sequence.StateIndexOf(parent);
      if (state_index < 0) {
        Throw(ErrorKind::kValue, "begin_forward: no state is kept after pending node ", parent,
              " of sequence ", request.seq_id, ", so node ", old + row,
              " cannot hang on it; commit a path and run it again first");
      }
      root = step->num_roots();
      step->root_state_indices.push_back(state_index);
    }
    step->row_sources.push_back(-1 - root);
    step->row_roots.push_back(root);
  }
  step->sequences.push_back({request.seq_id, row_begin, num_rows, pending, chain});

  // Which states can be kept: of pending nodes all, of committed tokens as many as a rollback may
  // need; without steps only the one after the last token of a chain.
  int32_t kept =
      pending ? num_rows
              : static_cast<int32_t>(std::min<int64_t>(num_rows, int64_t{config_.max_history} + 1));
  if (!config_.keep_steps) kept = chain ? 1 : 0;
  for (int32_t row = 0; row < num_rows; ++row) {
    step->row_state_indices.push_back(row < num_rows - kept ? -1
                                                            : 0);  // 0 until BeginForward takes one
  }
}

void RecurrentTable::BeginForward(const std::vector<StepRequest>& requests) {
  RequireNoForward("begin_forward");
  if (requests.empty()) Throw(ErrorKind::kValue, "begin_forward: no sequences were given");
  std::unordered_set<int64_t> seen;
  int64_t total = 0;
  for (const StepRequest& request : requests) {
    ValidateRequest(request, Get(request.seq_id));
    if (!seen.insert(request.seq_id).second) {
      Throw(ErrorKind::kValue, "begin_forward: sequence ", request.seq_id,
            " is given more than once");
    }
    total += request.append_length;
  }
  if (total > std::numeric_limits<int32_t>::max()) {
    Throw(ErrorKind::kValue, "begin_forward: ", total,
          " new tokens are more than one step can hold");
  }

  RecurrentStep step;
  for (const StepRequest& request : requests) {
    PlanRows(request, Get(request.seq_id), &step);
  }
  int32_t needed = 0;
  for (int32_t state_index : step.row_state_indices) needed += state_index == 0;
  // What end_forward will append is reserved here, so that it cannot fail.
  for (const StepRequest& request : requests) {
    RecurrentSequence& sequence = Find(request.seq_id);
    if (request.AppendsPending()) {
      sequence.pending.reserve(sequence.pending.size() + request.append_length);
    } else {
      sequence.history.reserve(sequence.history.size() + request.append_length);
    }
  }
  MakeRoom(needed);
  for (int32_t& state_index : step.row_state_indices) {
    if (state_index == 0) state_index = pool_.Take();
  }
  step_ = std::move(step);
  active_ = true;
}

void RecurrentTable::MakeRoom(int32_t count) {
  if (pool_.num_free() >= count) return;
  std::vector<bool> needed(pool_.size(), false);
  auto need = [&needed](int32_t state_index) {
    if (state_index >= 0) needed[state_index] = true;
  };
  need(0);
  for (const auto& item : sequences_) {
    need(item.second.history.back().state_index);
    for (const PendingState& node : item.second.pending) need(node.state_index);
  }
  for (const auto& item : checkpoints_) {
    need(item.second.present.state_index);
    for (const PendingState& node : item.second.pending) need(node.state_index);
  }
  const int32_t available =
      pool_.size() - static_cast<int32_t>(std::count(needed.begin(), needed.end(), true));
  if (available < count) {
    Throw(
        ErrorKind::kOutOfPages, "begin_forward: the step keeps ", count, " states, and only ",
        available, " of the ", config_.max_states,
        " that fit can be freed; append fewer tokens, drop pending ones or checkpoints, or create "
        "the recurrent state with more bytes");
  }
  while (pool_.num_free() < count) {
    RecurrentSequence* oldest = nullptr;
    for (auto& item : sequences_) {
      RecurrentSequence& sequence = item.second;
      if (sequence.history.size() < 2) continue;
      if (oldest == nullptr || sequence.history[0].stamp < oldest->history[0].stamp) {
        oldest = &sequence;
      }
    }
    Drop(oldest->history[0].state_index);
    oldest->history.erase(oldest->history.begin());
  }
}

void RecurrentTable::EndForward(StepOutcome outcome) {
  if (!active_) Throw(ErrorKind::kRuntime, "end_forward: no forward is in flight");
  if (outcome == StepOutcome::kFinal && !step_.all_chains()) {
    Throw(ErrorKind::kInternal, "a step with a tree has no final state");
  }
  for (const RecurrentStep::PlannedSequence& planned : step_.sequences)
    FinishSequence(planned, outcome);
  active_ = false;
}

void RecurrentTable::FinishSequence(const RecurrentStep::PlannedSequence& planned,
                                    StepOutcome outcome) {
  RecurrentSequence& sequence = Find(planned.sequence_id);
  const int64_t length = sequence.length();
  for (int32_t row = 0; row < planned.num_rows; ++row) {
    int32_t& state_index = step_.row_state_indices[planned.row_begin + row];
    const bool last = row + 1 == planned.num_rows;
    if (outcome == StepOutcome::kNothing || (outcome == StepOutcome::kFinal && !last)) {
      Drop(state_index);
      state_index = -1;
    }
    if (outcome == StepOutcome::kNothing && (planned.pending || last)) {
      state_index = step_.root_state_indices[step_.row_roots[planned.row_begin + row]];
      Hold(state_index);
    }
    if (planned.pending) {
      sequence.pending.push_back({step_.node_parents[planned.row_begin + row], state_index});
    } else if (state_index >= 0) {
      sequence.history.push_back({length + row + 1, state_index, next_stamp_++});
    }
  }
  if (!planned.pending) TrimHistory(&sequence);
}

void RecurrentTable::AbortForward() {
  if (!active_) return;
  for (int32_t state_index : step_.row_state_indices) Drop(state_index);
  active_ = false;
}

std::vector<int32_t> RecurrentTable::PlanCommit(
    const std::vector<int64_t>& ids, const std::vector<std::vector<int32_t>>& kept) const {
  RequireNoForward("commit");
  if (ids.size() != kept.size()) {
    Throw(ErrorKind::kValue, "commit: ", ids.size(), " sequences but ", kept.size(),
          " lists of kept nodes");
  }
  std::unordered_set<int64_t> seen;
  std::vector<int32_t> replay;
  for (size_t i = 0; i < ids.size(); ++i) {
    const RecurrentSequence& sequence = Get(ids[i]);
    if (!seen.insert(ids[i]).second) {
      Throw(ErrorKind::kValue, "commit: sequence ", ids[i], " is given more than once");
    }
    int32_t above = -1;
    int32_t after_last_state = 0;
    for (int32_t node : kept[i]) {
      if (node < 0 || node >= sequence.num_pending()) {
        Throw(ErrorKind::kIndex, "commit: sequence ", ids[i], " has ", sequence.num_pending(),
              " pending tokens, there is no node ", node);
      }
      if (sequence.pending[node].parent != above) {
        Throw(ErrorKind::kValue, "commit: node ", node, " of sequence ", ids[i], " hangs on ",
              sequence.pending[node].parent, ", not on ", above,
              "; a recurrent state keeps a path from the committed state downwards");
      }
      above = node;
      after_last_state = sequence.pending[node].state_index >= 0 ? 0 : after_last_state + 1;
    }
    replay.push_back(after_last_state);
  }
  return replay;
}

std::vector<int32_t> RecurrentTable::Commit(const std::vector<int64_t>& ids,
                                            const std::vector<std::vector<int32_t>>& kept) {
  std::vector<int32_t> replay = PlanCommit(ids, kept);
  for (size_t i = 0; i < ids.size(); ++i) {
    RecurrentSequence& sequence = Find(ids[i]);
    sequence.history.reserve(sequence.history.size() + kept[i].size());
  }
  for (size_t i = 0; i < ids.size(); ++i) CommitPath(&Find(ids[i]), kept[i]);
  return replay;
}

void RecurrentTable::CommitPath(RecurrentSequence* sequence, const std::vector<int32_t>& kept) {
  const int64_t length = sequence->length();
  for (size_t i = 0; i < kept.size(); ++i) {
    const int32_t state_index = sequence->pending[kept[i]].state_index;
    if (state_index < 0) continue;
    Hold(state_index);
    sequence->history.push_back({length + static_cast<int64_t>(i) + 1, state_index, next_stamp_++});
  }
  TruncatePending(sequence, 0);
  TrimHistory(sequence);
}

}  // namespace kvctl
