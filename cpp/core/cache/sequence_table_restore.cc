// The metadata of a sequence, recorded and restored in another cache.
#include <algorithm>

#include "core/cache/page_reservation.h"
#include "core/cache/sequence_table.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

void CheckRecord(const SequenceRecord& record) {
  const auto check = [](bool holds, const char* what) {
    if (!holds) Throw(ErrorKind::kValue, "no sequence can have this state: ", what);
  };
  const SlidingWindow& window = record.window;
  const EvictedRange& evicted = record.evicted;
  check(record.num_committed >= 0, "its length is negative");
  check(record.next_position >= 0 && record.next_position <= kPositionLimit,
        "its next position is not in [0, 2^30]");
  check(window.size >= 0 && window.sinks >= 0 && window.rollback_window >= 0,
        "a size of its window is negative");
  check(window.size > 0 || (window.sinks == 0 && window.rollback_window == 0),
        "sinks without a window");
  if (record.positions != nullptr) {
    check(static_cast<int32_t>(record.positions->size()) == record.num_committed,
          "it does not have as many positions as tokens");
    for (int32_t position : *record.positions) {
      check(position >= 0 && position < kPositionLimit, "a position is not in [0, 2^30)");
    }
  } else {
    check(record.next_position == record.num_committed, "its next position is not its length");
  }
  if (evicted.begin == 0 && evicted.end == 0) return;
  check(0 <= evicted.begin && evicted.begin < evicted.end && evicted.end <= record.num_committed,
        "it does not have the tokens that it evicts");
  const auto position = [&](int32_t kv_index) {
    return record.positions ? (*record.positions)[kv_index] : kv_index;
  };
  check(window.size > 0 && position(evicted.end - 1) <= record.next_position - window.size &&
            position(evicted.begin) >= window.sinks,
        "its window shows evicted tokens");
}

}  // namespace

SequenceRecord SequenceTable::Record(int64_t id, const char* operation) const {
  RequireNoForward(operation);
  const Sequence& sequence = Get(id);
  if (!sequence.pending.empty()) {
    Throw(ErrorKind::kValue, operation, " takes committed tokens, and sequence ", id, " has ",
          sequence.pending.size(), " pending nodes; commit or abort them first");
  }
  PositionList positions = sequence.positions == nullptr
                               ? nullptr
                               : std::make_shared<std::vector<int32_t>>(*sequence.positions);
  return {sequence.num_committed, sequence.next_position, std::move(positions), sequence.window,
          sequence.evicted};
}

void SequenceTable::Restore(int64_t id, const SequenceRecord& record) {
  RequireNoForward("load_sequence");
  CheckNewId(id);
  CheckRecord(record);
  auto sequence = std::make_unique<Sequence>();
  sequence->id = id;
  sequence->num_committed = record.num_committed;
  sequence->next_position = record.next_position;
  if (record.positions != nullptr) {
    sequence->positions = std::make_shared<std::vector<int32_t>>(*record.positions);
  }
  sequence->window = record.window;
  sequence->evicted = record.evicted;
  int32_t num_held = 0;
  for (int32_t page = 0; page < pages_.PagesFor(record.num_committed); ++page) {
    num_held += !pages_.IsEvictedPage(record.evicted, page);
  }
  PageReservation reservation(pages_.pool());
  reservation.NeedNew(num_held);
  reservation.Check("load_sequence");
  sequence->pages.reserve(pages_.PagesFor(record.num_committed));
  Sequence& added = *sequences_.emplace(id, std::move(sequence)).first->second;
  for (int32_t page = 0; page < pages_.PagesFor(record.num_committed); ++page) {
    added.pages.push_back(pages_.IsEvictedPage(record.evicted, page) ? -1 : pages_.pool().Take());
  }
}

}  // namespace kvctl
