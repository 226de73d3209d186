#include "core/cache/sequence_table.h"

#include <algorithm>
#include <utility>

#include "core/cache/held_tokens.h"
#include "kvctl/error.h"

namespace kvctl {

SequenceTable::SequenceTable(const TableConfig& config)
    : config_(config), pages_(config.num_pages, config.page_size) {}

SequenceTable::~SequenceTable() { Clear(); }

int64_t SequenceTable::total_reported_length() const {
  int64_t total = 0;
  for (const auto& [id, sequence] : sequences_) total += sequence->reported_length();
  return total;
}

std::vector<int64_t> SequenceTable::SequenceIds() const {
  std::vector<int64_t> ids;
  for (const auto& [id, sequence] : sequences_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  return ids;
}

const Sequence& SequenceTable::Get(int64_t id) const {
  auto it = sequences_.find(id);
  if (it == sequences_.end()) Throw(ErrorKind::kKey, "the cache has no sequence ", id);
  return *it->second;
}

Sequence& SequenceTable::Find(int64_t id) { return const_cast<Sequence&>(Get(id)); }

void SequenceTable::BeginBatch() {
  ++batch_mark_;
  batch_.clear();
}

Sequence& SequenceTable::NameInBatch(int64_t id) {
  Sequence& sequence = Find(id);
  if (sequence.batch_mark == batch_mark_) {
    Throw(ErrorKind::kValue, "sequence ", id, " is named twice in one batch");
  }
  sequence.batch_mark = batch_mark_;
  batch_.push_back(&sequence);
  return sequence;
}

std::vector<bool> SequenceTable::UsedSlots() const {
  std::vector<bool> used(static_cast<size_t>(config_.num_pages) * config_.page_size, false);
  auto mark = [&](int32_t page, int32_t first_index, int32_t kv_len) {
    for (int32_t i = 0; page >= 0 && i < config_.page_size && first_index + i < kv_len; ++i) {
      used[static_cast<size_t>(page) * config_.page_size + i] = true;
    }
  };
  for (const auto& [id, sequence] : sequences_) {
    for (size_t i = 0; i < sequence->pages.size(); ++i) {
      mark(sequence->pages[i], i * config_.page_size, sequence->kv_len());
    }
    for (const Checkpoint* checkpoint : sequence->checkpoints) {
      for (size_t i = 0; i < checkpoint->saved_pages_.size(); ++i) {
        mark(checkpoint->saved_pages_[i], (checkpoint->num_shared_pages_ + i) * config_.page_size,
             checkpoint->kv_len());
      }
    }
  }
  return used;
}

std::vector<int32_t> SequenceTable::CountReferences() const {
  std::vector<int32_t> counts(config_.num_pages, 0);
  auto count = [&](const std::vector<int32_t>& pages) {
    for (int32_t page : pages) {
      if (page >= 0) ++counts[page];
    }
  };
  for (const auto& [id, sequence] : sequences_) {
    count(sequence->pages);
    for (const Checkpoint* checkpoint : sequence->checkpoints) count(checkpoint->saved_pages_);
  }
  return counts;
}

void SequenceTable::RequireNoForward(const char* operation) const {
  if (!forward_.active) return;
  Throw(ErrorKind::kRuntime, operation,
        " is not possible between begin_forward and end_forward; end or abort the forward first");
}

void SequenceTable::CheckNewId(int64_t id) const {
  if (id < 0) Throw(ErrorKind::kValue, "a sequence id must not be negative, got ", id);
  if (Contains(id)) Throw(ErrorKind::kValue, "the cache already has a sequence ", id);
  if (config_.max_sequences > 0 && num_sequences() >= static_cast<size_t>(config_.max_sequences)) {
    Throw(ErrorKind::kValue, "sequence ", id, " would be one more than the ", config_.max_sequences,
          " that the cache was created for (max_sequences)");
  }
}

void SequenceTable::Clear() {
  for (auto& [id, sequence] : sequences_) {
    for (Checkpoint* checkpoint : sequence->checkpoints) checkpoint->table_ = nullptr;
  }
  sequences_.clear();
  pages_.pool().Clear();
  forward_.active = false;
}

void SequenceTable::Add(int64_t id) {
  RequireNoForward("add_sequence");
  CheckNewId(id);
  auto sequence = std::make_unique<Sequence>();
  sequence->id = id;
  sequence->window = default_window_;
  sequences_.emplace(id, std::move(sequence));
}

void SequenceTable::Remove(int64_t id) {
  RequireNoForward("remove_sequence");
  Sequence& sequence = Find(id);
  for (Checkpoint* checkpoint : sequence.checkpoints) {
    for (int32_t page : checkpoint->saved_pages_) pages_.Release(page);
    checkpoint->table_ = nullptr;
  }
  pages_.ShrinkPages(&sequence, 0);
  sequences_.erase(id);
}

void SequenceTable::Fork(int64_t parent_id, int64_t child_id, int64_t position) {
  RequireNoForward("fork_sequence");
  const Sequence& parent = Get(parent_id);
  CheckNewId(child_id);
  if (position < -1 || position > parent.kv_len()) {
    Throw(ErrorKind::kValue, "fork position ", position, " is not in sequence ", parent_id,
          ", which has ", parent.kv_len(), " tokens (-1 forks at the end)");
  }
  const int32_t kv_len = position < 0 ? parent.kv_len() : static_cast<int32_t>(position);
  CheckCut(parent, kv_len, "fork_sequence");
  auto child = std::make_unique<Sequence>();
  child->id = child_id;
  child->pages.assign(parent.pages.begin(), parent.pages.begin() + pages_.PagesFor(kv_len));
  child->num_committed = parent.num_committed;
  child->next_position = parent.next_position;
  if (parent.positions)
    child->positions = std::make_shared<std::vector<int32_t>>(*parent.positions);
  child->pending = parent.pending;
  // TVM allows a fork within the sinks of a window, and gives that child no window.
  if (!parent.window.reports_held_length || kv_len > parent.window.sinks) {
    child->window = parent.window;
  }
  child->evicted = parent.evicted.Cut(kv_len);
  if (kv_len < parent.num_committed) child->TruncateCommitted(kv_len);
  child->pending.Truncate(std::max(kv_len - child->num_committed, 0));
  const Sequence& added = *sequences_.emplace(child_id, std::move(child)).first->second;
  for (int32_t page : added.pages) pages_.Retain(page);
}

void SequenceTable::PopN(int64_t id, int64_t n) {
  RequireNoForward("popn");
  Sequence& sequence = Find(id);
  if (n < 0 || n > sequence.kv_len()) {
    Throw(ErrorKind::kValue, "cannot pop ", n, " tokens from sequence ", id, ", which has ",
          sequence.kv_len());
  }
  const int32_t kv_len = sequence.kv_len() - static_cast<int32_t>(n);
  CheckCut(sequence, kv_len, "popn");
  pages_.TruncateKv(&sequence, kv_len);
}

void SequenceTable::DropPending(int64_t id) {
  RequireNoForward("abort of pending nodes");
  Sequence& sequence = Find(id);
  pages_.TruncateKv(&sequence, sequence.num_committed);
}

void SequenceTable::DropPending(const std::vector<int64_t>& ids) {
  RequireNoForward("abort of pending nodes");
  for (int64_t id : ids) {  // reserve first, so that nothing below can throw
    Sequence& sequence = Find(id);
    pages_.MakeRoomToPreserve(&sequence, sequence.num_committed);
  }
  for (int64_t id : ids) DropPending(id);
}

}  // namespace kvctl
