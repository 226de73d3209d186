#include "core/cache/checkpoint.h"

#include <algorithm>

#include "core/cache/sequence_table.h"
#include "core/support/make_room.h"
#include "kvctl/error.h"

namespace kvctl {

Checkpoint::~Checkpoint() {
  if (table_ != nullptr) table_->Forget(this);
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
  checkpoint->num_shared_pages_ = PagesFor(sequence.kv_len());
  sequence.checkpoints.push_back(checkpoint.get());
  checkpoint->table_ = this;
  return checkpoint;
}

void SequenceTable::Forget(Checkpoint* checkpoint) {
  for (int32_t page : checkpoint->saved_pages_) Release(page);
  auto& live = checkpoint->sequence_->checkpoints;
  live.erase(std::find(live.begin(), live.end(), checkpoint));
}

void SequenceTable::MakeRoomToPreserve(Sequence* sequence, int32_t kv_index) {
  const int32_t first_page = kv_index / config_.page_size;
  for (Checkpoint* checkpoint : sequence->checkpoints) {
    if (checkpoint->kv_len() <= kv_index || checkpoint->num_shared_pages_ <= first_page) continue;
    MakeRoom(&checkpoint->saved_pages_, checkpoint->num_shared_pages_ - first_page);
  }
}

void SequenceTable::Preserve(Sequence* sequence, int32_t kv_index) {
  const int32_t first_page = kv_index / config_.page_size;
  for (Checkpoint* checkpoint : sequence->checkpoints) {
    if (checkpoint->kv_len() <= kv_index || checkpoint->num_shared_pages_ <= first_page) continue;
    auto begin = sequence->pages.begin() + first_page;
    auto end = sequence->pages.begin() + checkpoint->num_shared_pages_;
    checkpoint->saved_pages_.insert(checkpoint->saved_pages_.begin(), begin, end);
    std::for_each(begin, end, [this](int32_t page) { Retain(page); });
    checkpoint->num_shared_pages_ = first_page;
  }
}

int32_t SequenceTable::NumNewHolders(const Sequence& sequence, int32_t kv_index,
                                     int32_t page_index) const {
  int32_t count = 0;
  for (const Checkpoint* checkpoint : sequence.checkpoints) {
    count += checkpoint->kv_len() > kv_index && checkpoint->num_shared_pages_ > page_index;
  }
  return count;
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
  sequence.pages.reserve(PagesFor(kv_len));
  const int32_t kept =
      checkpoint->saved_pages_.empty() ? kv_len : checkpoint->num_shared_pages_ * config_.page_size;
  MakeRoomToPreserve(&sequence, kept);
  Preserve(&sequence, kept);
  ShrinkPages(&sequence, checkpoint->num_shared_pages_);
  // The checkpoint's hold on its pages passes to the sequence, whose prefix it is again.
  for (int32_t page : checkpoint->saved_pages_) sequence.pages.push_back(page);
  checkpoint->saved_pages_.clear();
  checkpoint->num_shared_pages_ = PagesFor(kv_len);
  sequence.evicted = evicted.Cut(kv_len);
  sequence.num_committed = checkpoint->num_committed_;
  sequence.next_position = checkpoint->next_position_;
  sequence.positions = std::move(positions);
  sequence.pending = std::move(pending);
}

}  // namespace kvctl
