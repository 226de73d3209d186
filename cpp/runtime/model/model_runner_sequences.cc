// The sequences of a runner: its cache and its recurrent state together, with tokens run again.
#include <utility>

#include "kvctl/error.h"
#include "kvctl/model_runner.h"
#include "runtime/model/batch.h"
#include "runtime/model/replay_log.h"

namespace kvctl {

/*! \brief What a sequence becomes, and how many of its last tokens have to run again for that. */
struct ReplayTarget {
  int64_t seq_id;
  SequenceTokens tokens;
  int64_t again;
};

void ModelRunner::CheckPair(int64_t seq_id) const {
  if (!cache_.defined() || !state_.defined() || state_->InForward()) return;
  const int64_t cached = cache_->GetSequenceLength(seq_id);
  const int64_t remembered = state_->SequenceLength(seq_id);
  if (cached == remembered) return;
  Throw(ErrorKind::kRuntime, "sequence ", seq_id, " has ", cached,
        " tokens in the paged cache and ", remembered,
        " in the recurrent state: one of them was changed alone");
}

SequenceTokens& ModelRunner::TokensOf(int64_t seq_id) const {
  const auto found = log_->sequences.find(seq_id);
  if (found != log_->sequences.end()) return found->second;
  Throw(ErrorKind::kKey, "sequence ", seq_id, " was not added by ModelRunner::AddSequence");
}

void ModelRunner::AddSequence(int64_t seq_id) {
  if (state_.defined()) state_->AddSequence(seq_id);
  try {
    if (cache_.defined()) cache_->AddSequence(seq_id);
    if (state_.defined()) log_->sequences[seq_id] = SequenceTokens();
  } catch (...) {
    if (state_.defined()) state_->RemoveSequence(seq_id);
    throw;
  }
}

void ModelRunner::RemoveSequence(int64_t seq_id) {
  CheckPair(seq_id);
  if (state_.defined() && state_->InForward()) {
    Throw(ErrorKind::kRuntime, "a sequence cannot be removed while a step is in flight");
  }
  if (cache_.defined()) cache_->RemoveSequence(seq_id);
  if (state_.defined()) state_->RemoveSequence(seq_id);
  log_->sequences.erase(seq_id);
}

void ModelRunner::ForkSequence(int64_t parent, int64_t child, int64_t position) {
  if (!state_.defined()) return cache_->ForkSequence(parent, child, position);
  CheckPair(parent);
  SequenceTokens tokens = TokensOf(parent);
  if (position >= 0) tokens = tokens.First(position);
  int64_t again = 0;
  if (position > 0 && position < state_->EarliestPosition(parent)) {
    again = position;
    state_->AddSequence(child);
  } else {
    again = state_->Fork(parent, child, position);
  }
  try {
    if (cache_.defined()) {
      if (again > 0 && again == position) {
        cache_->AddSequence(child);
      } else {
        cache_->ForkSequence(parent, child, position - again);
      }
    }
  } catch (...) {
    state_->RemoveSequence(child);
    throw;
  }
  try {
    RunAgain({{child, std::move(tokens), again}});
  } catch (...) {
    if (cache_.defined()) cache_->RemoveSequence(child);
    state_->RemoveSequence(child);
    throw;
  }
}

void ModelRunner::Commit(const std::vector<int64_t>& seq_ids,
                         const std::vector<std::vector<int32_t>>& kept) {
  if (!state_.defined()) return cache_->Commit(seq_ids, kept);
  for (int64_t id : seq_ids) CheckPair(id);
  std::vector<RunnerCheckpoint> points;
  for (int64_t id : seq_ids) points.push_back(MakeCheckpoint(id));
  const std::vector<int32_t> again = state_->PlanCommit(seq_ids, kept);
  std::vector<ReplayTarget> targets;
  std::vector<std::vector<int32_t>> kept_by_cache = kept;
  for (size_t i = 0; i < seq_ids.size(); ++i) {
    targets.push_back({seq_ids[i], TokensOf(seq_ids[i]).Kept(kept[i]), again[i]});
    kept_by_cache[i].resize(kept[i].size() - again[i]);
  }
  if (cache_.defined()) cache_->Commit(seq_ids, kept_by_cache);
  state_->Commit(seq_ids, kept);
  RunAgainOrReturn(std::move(targets), seq_ids, points);
}

void ModelRunner::DropPending(const std::vector<int64_t>& seq_ids) {
  if (state_.defined()) {
    for (int64_t id : seq_ids) {
      CheckPair(id);
      TokensOf(id);
    }
  }
  if (cache_.defined()) cache_->DropPending(seq_ids);
  if (!state_.defined()) return;
  state_->DropPending(seq_ids);
  for (int64_t id : seq_ids) {
    SequenceTokens& tokens = TokensOf(id);
    tokens.pending.clear();
    tokens.pending_special = false;
  }
}

void ModelRunner::PopN(int64_t seq_id, int64_t n) {
  if (!state_.defined()) return cache_->Pop(seq_id, n);
  const RunnerCheckpoint point = MakeCheckpoint(seq_id);
  const int64_t length = state_->SequenceLength(seq_id), kept = length - n;
  int64_t again = kept;
  if (kept >= 0 && kept < state_->EarliestPosition(seq_id)) {
    if (state_->InForward()) {
      Throw(ErrorKind::kRuntime, "tokens cannot be taken back while a step is in flight");
    }
    if (cache_.defined()) cache_->Pop(seq_id, length);
    state_->Restart(seq_id);
  } else {
    const int64_t planned = state_->PlanPop(seq_id, n).replay;
    if (cache_.defined()) cache_->Pop(seq_id, n + planned);
    again = state_->Pop(seq_id, n);
  }
  RunAgainOrReturn({{seq_id, TokensOf(seq_id).First(kept), again}}, {seq_id}, {point});
}

RunnerCheckpoint ModelRunner::MakeCheckpoint(int64_t seq_id) {
  CheckPair(seq_id);
  RunnerCheckpoint point;
  if (state_.defined()) point.tokens = std::make_shared<SequenceTokens>(TokensOf(seq_id));
  if (cache_.defined()) point.cache = cache_->MakeCheckpoint(seq_id);
  if (state_.defined()) point.state = state_->MakeCheckpoint(seq_id);
  return point;
}

void ModelRunner::Rollback(int64_t seq_id, const RunnerCheckpoint& checkpoint) {
  if (state_.defined()) state_->CheckRollback(seq_id, checkpoint.state);
  if (cache_.defined()) cache_->Rollback(seq_id, checkpoint.cache);
  if (!state_.defined()) return;
  state_->Rollback(seq_id, checkpoint.state);
  log_->sequences[seq_id] = *checkpoint.tokens;
}

int64_t ModelRunner::SequenceLength(int64_t seq_id) const {
  return state_.defined() ? state_->SequenceLength(seq_id) : cache_->GetSequenceLength(seq_id);
}

int64_t ModelRunner::PendingLength(int64_t seq_id) const {
  return state_.defined() ? state_->PendingLength(seq_id) : cache_->PendingLength(seq_id);
}

int64_t ModelRunner::replayed_tokens() const { return log_->replayed; }

void ModelRunner::Record(int64_t seq_id, const int32_t* tokens, int64_t count, bool special) {
  const auto found = log_->sequences.find(seq_id);
  if (found == log_->sequences.end()) return;  // nobody asked this runner to run them again
  SequenceTokens& known = found->second;
  const bool grew = PendingLength(seq_id) > static_cast<int64_t>(known.pending.size());
  known.Append(tokens, count, grew, special);
}

void ModelRunner::RunAgainOrReturn(std::vector<ReplayTarget> targets,
                                   const std::vector<int64_t>& seq_ids,
                                   const std::vector<RunnerCheckpoint>& points) {
  try {
    RunAgain(std::move(targets));
  } catch (...) {
    for (size_t i = 0; i < seq_ids.size(); ++i) Rollback(seq_ids[i], points[i]);
    throw;
  }
}

void ModelRunner::RunAgain(std::vector<ReplayTarget> targets) {
  std::vector<int64_t> seq_ids;
  std::vector<std::vector<int32_t>> again;
  int64_t count = 0;
  for (const ReplayTarget& target : targets) {
    if (target.again == 0) continue;
    const std::vector<int32_t>& all = target.tokens.committed;
    const auto size = static_cast<int64_t>(all.size());
    if (size - target.again < target.tokens.special) {
      Throw(ErrorKind::kValue, "the last ", target.again, " of the ", size,
            " tokens to keep in sequence ", target.seq_id,
            " would have to run again, and the first ", target.tokens.special,
            " cannot: some ran under a mask or at positions of their own; ",
            "go back to a checkpoint");
    }
    seq_ids.push_back(target.seq_id);
    again.emplace_back(all.end() - target.again, all.end());
    count += target.again;
  }
  if (!seq_ids.empty()) RunPrompts(seq_ids, again);
  log_->replayed += count;
  for (ReplayTarget& target : targets) {
    log_->sequences[target.seq_id] = std::move(target.tokens);
  }
}

}  // namespace kvctl
