#include "core/cache/checkpoint.h"

#include <algorithm>

#include "core/cache/held_tokens.h"
#include "core/cache/sequence_table.h"
#include "kvctl/error.h"

namespace kvctl {

Checkpoint::~Checkpoint() {
  if (table_ != nullptr) table_->pages_.Forget(this);
}

CheckpointPtr SequenceTable::MakeCheckpoint(int64_t id) {
  RequireNoForward("checkpoint");
  Sequence& sequence = Find(id);
  CheckpointPtr checkpoint(new Checkpoint());
  checkpoint->sequence_ = &sequence;
  checkpoint->sequence_id_ = id;
  checkpoint->num_committed_ = sequence.num_committed;
  checkpoint->next_position_ = sequence.next_position;
  checkpoint->positions_ = sequence.positions;
  checkpoint->pending_ = sequence.pending;
  checkpoint->evicted_ = sequence.evicted;
  checkpoint->num_shared_pages_ = pages_.PagesFor(sequence.kv_len());
  sequence.checkpoints.push_back(checkpoint.get());
  checkpoint->table_ = this;
  return checkpoint;
}

void SequenceTable::Rollback(int64_t id, Checkpoint* checkpoint) {
  RequireNoForward("rollback");
  Sequence& sequence = Find(id);
  if (!checkpoint->valid()) {
    Throw(ErrorKind::kValue, "the checkpoint's sequence ", checkpoint->sequence_id(),
          " has been removed since");
  }
  if (checkpoint->table_ != this || checkpoint->sequence_ != &sequence) {
    Throw(ErrorKind::kValue, "the checkpoint is one of sequence ", checkpoint->sequence_id(),
          checkpoint->table_ != this ? " of another cache" : "", ", not of sequence ", id);
  }
  const int32_t kv_len = checkpoint->kv_len();
  // Evicted are the tokens that were evicted then, and the shared and saved pages evicted since.
  const int32_t num_shared = checkpoint->num_shared_pages_;
  EvictedRange evicted = checkpoint->evicted_;
  evicted.Join(sequence.evicted.Cut(num_shared * config_.page_size));
  for (int32_t i = 0; i < static_cast<int32_t>(checkpoint->saved_pages_.size()); ++i) {
    if (checkpoint->saved_pages_[i] >= 0) continue;
    evicted.Join({(num_shared + i) * config_.page_size, (num_shared + i + 1) * config_.page_size});
  }
  CheckHeld(id, sequence.window,
            {evicted, kv_len, checkpoint->next_position_, checkpoint->positions_}, "rollback");
  // Reserve first so that the later steps cannot throw.
  PendingRegion pending = checkpoint->pending_;
  PositionList positions = checkpoint->positions_;
  if (positions && static_cast<int32_t>(positions->size()) > checkpoint->num_committed_) {
    // Appends have extended the list since; this sequence will continue differently.
    positions = std::make_shared<std::vector<int32_t>>(
        positions->begin(), positions->begin() + checkpoint->num_committed_);
  }
  sequence.pages.reserve(pages_.PagesFor(kv_len));
  const int32_t kept =
      checkpoint->saved_pages_.empty() ? kv_len : checkpoint->num_shared_pages_ * config_.page_size;
  pages_.MakeRoomToPreserve(&sequence, kept);
  pages_.Preserve(&sequence, kept);
  pages_.ShrinkPages(&sequence, checkpoint->num_shared_pages_);
  // The checkpoint's hold on its pages passes to the sequence, whose prefix it is again.
  for (int32_t page : checkpoint->saved_pages_) sequence.pages.push_back(page);
  checkpoint->saved_pages_.clear();
  checkpoint->num_shared_pages_ = pages_.PagesFor(kv_len);
  sequence.evicted = evicted.Cut(kv_len);
  sequence.num_committed = checkpoint->num_committed_;
  sequence.next_position = checkpoint->next_position_;
  sequence.positions = std::move(positions);
  sequence.pending = std::move(pending);
}

}  // namespace kvctl
