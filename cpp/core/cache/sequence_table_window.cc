// Sliding windows: which pages they evict, and how far back a windowed sequence can roll back.
#include <algorithm>

#include "core/cache/sequence_table.h"
#include "kvctl/error.h"

namespace kvctl {

namespace {

void CheckWindow(const SlidingWindow& window) {
  if (window.size < 1 || window.sinks < 0 || window.rollback_window < 0) {
    Throw(ErrorKind::kValue,
          "a sliding window needs a size of at least 1 and sinks and a horizon of at "
          "least 0, got ",
          window.size, ", ", window.sinks, " and ", window.rollback_window);
  }
}

}  // namespace

void SequenceTable::SetDefaultWindow(const SlidingWindow& window) {
  CheckWindow(window);
  default_window_ = window;
}

void SequenceTable::SetWindow(int64_t id, const SlidingWindow& window) {
  RequireNoForward("enable_sliding_window");
  Sequence& sequence = Find(id);
  CheckWindow(window);
  const PositionList& positions = sequence.positions;
  if (positions != nullptr && !positions->empty() &&
      (!std::is_sorted(positions->begin(), positions->end()) ||
       positions->back() > sequence.next_position)) {
    Throw(ErrorKind::kValue, "a sliding window measures positions, and those that sequence ", id,
          " was given descend");
  }
  if (!sequence.evicted.empty() && window.sinks > sequence.window.sinks) {
    Throw(ErrorKind::kValue, "sequence ", id, " has evicted tokens that would become sinks");
  }
  CheckHeld(id, window,
            {sequence.evicted, sequence.kv_len(), sequence.next_position, sequence.positions},
            "enable_sliding_window");
  sequence.window = window;
  EvictBehindWindow(&sequence);
}

void SequenceTable::EvictBehindWindow(Sequence* sequence) {
  const SlidingWindow& window = sequence->window;
  if (window.size == 0) return;
  // A query at position p sees positions above p - size. The earliest query that may still come,
  // after a rollback over the rollback window, is at next_position - rollback_window.
  const int64_t last_evicted =
      int64_t{sequence->next_position} - window.rollback_window - window.size;
  int32_t page =
      std::max(sequence->evicted.end / config_.page_size, PagesFor(sequence->num_sinks()));
  for (; (page + 1) * config_.page_size <= sequence->num_committed; ++page) {
    if (sequence->PositionOf((page + 1) * config_.page_size - 1) > last_evicted) break;
    Release(sequence->pages[page]);
    sequence->pages[page] = -1;
    sequence->evicted.Join({page * config_.page_size, (page + 1) * config_.page_size});
  }
}

void SequenceTable::CheckHeld(int64_t id, const SlidingWindow& window, const Held& held,
                              const char* operation) const {
  if (held.evicted.empty() || held.kv_len <= held.evicted.begin) return;
  const auto position = [&](int32_t kv_index) {
    return held.positions ? (*held.positions)[kv_index] : kv_index;
  };
  if (held.kv_len >= held.evicted.end &&
      position(held.evicted.end - 1) <= held.next_position - window.size &&
      position(held.evicted.begin) >= window.sinks) {
    return;
  }
  Throw(ErrorKind::kValue, operation, " would show tokens of sequence ", id,
        " that its sliding window of ", window.size, " has evicted; the rollback horizon is ",
        window.rollback_window, " tokens");
}

void SequenceTable::CheckCut(const Sequence& sequence, int32_t kv_len,
                             const char* operation) const {
  if (kv_len >= sequence.num_committed) return;
  CheckHeld(sequence.id, sequence.window,
            {sequence.evicted, kv_len, sequence.PositionOf(kv_len), sequence.positions}, operation);
}

}  // namespace kvctl
