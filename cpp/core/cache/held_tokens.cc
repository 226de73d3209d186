#include "core/cache/held_tokens.h"

#include "kvctl/error.h"

namespace kvctl {

void CheckHeld(int64_t id, const SlidingWindow& window, const HeldTokens& held,
               const char* operation) {
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

void CheckCut(const Sequence& sequence, int32_t kv_len, const char* operation) {
  if (kv_len >= sequence.num_committed) return;
  CheckHeld(sequence.id, sequence.window,
            {sequence.evicted, kv_len, sequence.PositionOf(kv_len), sequence.positions}, operation);
}

}  // namespace kvctl
