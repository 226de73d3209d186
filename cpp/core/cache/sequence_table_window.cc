// Sliding windows: which pages they let go, and how far back a windowed sequence can return.
#include <algorithm>

#include "core/cache/sequence_table.h"
#include "kvctl/error.h"

namespace kvctl {

namespace {

void CheckWindow(const SlidingWindow& window) {
  if (window.size < 1 || window.sinks < 0 || window.horizon < 0) {
    Throw(ErrorKind::kValue,
          "a sliding window needs a size of at least 1 and sinks and a horizon of at "
          "least 0, got ",
          window.size, ", ", window.sinks, " and ", window.horizon);
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
    Throw(ErrorKind::kValue, "sequence ", id, " has let go of tokens that would become sinks");
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
  // A row at position p sees positions above p - size; the earliest row that may still come, after
  // a return over the whole horizon, is at next_position - horizon.
  const int64_t last_gone = int64_t{sequence->next_position} - window.horizon - window.size;
  int32_t page =
      std::max(sequence->evicted.end / config_.page_size, PagesFor(sequence->num_sinks()));
  for (; (page + 1) * config_.page_size <= sequence->num_committed; ++page) {
    if (sequence->PositionOf((page + 1) * config_.page_size - 1) > last_gone) break;
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
        " that its sliding window of ", window.size, " has let go; the rollback horizon is ",
        window.horizon, " tokens");
}

void SequenceTable::CheckCut(const Sequence& sequence, int32_t kv_len,
                             const char* operation) const {
  if (kv_len >= sequence.num_committed) return;
  CheckHeld(sequence.id, sequence.window,
            {sequence.evicted, kv_len, sequence.PositionOf(kv_len), sequence.positions}, operation);
}

}  // namespace kvctl
