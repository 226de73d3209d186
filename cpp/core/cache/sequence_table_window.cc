// Sliding windows: which pages they evict, and how far back a windowed sequence can roll back.
#include <algorithm>

#include "core/cache/held_tokens.h"
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
  pages_.EvictBehindWindow(&sequence);
}

}  // namespace kvctl
