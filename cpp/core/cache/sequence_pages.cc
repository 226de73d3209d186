#include "core/cache/sequence_pages.h"

#include <algorithm>

#include "core/support/make_room.h"

namespace kvctl {

void SequencePages::ShrinkPages(Sequence* sequence, int32_t count) {
  while (static_cast<int32_t>(sequence->pages.size()) > count) {
    Release(sequence->pages.back());
    sequence->pages.pop_back();
  }
}

void SequencePages::TruncateKv(Sequence* sequence, int32_t kv_len) {
  MakeRoomToPreserve(sequence, kv_len);
  if (kv_len < sequence->num_committed) sequence->TruncateCommitted(kv_len);
  Preserve(sequence, kv_len);
  sequence->pending.Truncate(kv_len - sequence->num_committed);
  ShrinkPages(sequence, PagesFor(kv_len));
  sequence->evicted = sequence->evicted.Cut(kv_len);
}

void SequencePages::CopyOnWrite(Sequence* sequence, int32_t page_index, CopyPlan* moves) {
  const int32_t shared = sequence->pages[page_index];
  if (!pool_.shared(shared)) return;
  MakeRoom(&moves->pages, 1);
  const int32_t copy = pool_.Take();
  moves->pages.push_back({shared, copy});
  sequence->pages[page_index] = copy;
  pool_.Release(shared);
}

void SequencePages::EvictBehindWindow(Sequence* sequence) {
  const SlidingWindow& window = sequence->window;
  if (window.size == 0) return;
  // A query at position p sees positions above p - size. The earliest query that may still come,
  // after a rollback over the rollback window, is at next_position - rollback_window.
  const int64_t last_evicted =
      int64_t{sequence->next_position} - window.rollback_window - window.size;
  int32_t page = std::max(sequence->evicted.end / page_size_, PagesFor(sequence->num_sinks()));
  for (; (page + 1) * page_size_ <= sequence->num_committed; ++page) {
    if (sequence->PositionOf((page + 1) * page_size_ - 1) > last_evicted) break;
    Release(sequence->pages[page]);
    sequence->pages[page] = -1;
    sequence->evicted.Join({page * page_size_, (page + 1) * page_size_});
  }
}

void SequencePages::MakeRoomToPreserve(Sequence* sequence, int32_t kv_index) {
  const int32_t first_page = kv_index / page_size_;
  for (Checkpoint* checkpoint : sequence->checkpoints) {
    if (checkpoint->kv_len() <= kv_index || checkpoint->num_shared_pages_ <= first_page) continue;
    MakeRoom(&checkpoint->saved_pages_, checkpoint->num_shared_pages_ - first_page);
  }
}

void SequencePages::Preserve(Sequence* sequence, int32_t kv_index) {
  const int32_t first_page = kv_index / page_size_;
  for (Checkpoint* checkpoint : sequence->checkpoints) {
    if (checkpoint->kv_len() <= kv_index || checkpoint->num_shared_pages_ <= first_page) continue;
    auto begin = sequence->pages.begin() + first_page;
    auto end = sequence->pages.begin() + checkpoint->num_shared_pages_;
    checkpoint->saved_pages_.insert(checkpoint->saved_pages_.begin(), begin, end);
    std::for_each(begin, end, [this](int32_t page) { Retain(page); });
    checkpoint->num_shared_pages_ = first_page;
  }
}

int32_t SequencePages::NumNewHolders(const Sequence& sequence, int32_t kv_index,
                                     int32_t page_index) const {
  int32_t count = 0;
  for (const Checkpoint* checkpoint : sequence.checkpoints) {
    count += checkpoint->kv_len() > kv_index && checkpoint->num_shared_pages_ > page_index;
  }
  return count;
}

void SequencePages::Forget(Checkpoint* checkpoint) {
  for (int32_t page : checkpoint->saved_pages_) Release(page);
  auto& live = checkpoint->sequence_->checkpoints;
  live.erase(std::find(live.begin(), live.end(), checkpoint));
}

}  // namespace kvctl
