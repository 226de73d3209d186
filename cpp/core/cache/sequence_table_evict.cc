// Eviction: keeps any subset of the committed tokens.
#include <numeric>
#include <utility>

#include "core/cache/page_reservation.h"
#include "core/cache/sequence_table.h"
#include "core/support/make_room.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

/*! \brief The positions of the kept tokens afterwards; null if they are 0, 1, 2, ... */
PositionList PositionsAfter(const Sequence& sequence, const std::vector<int32_t>& keep,
                            bool renumber) {
  if (renumber) return nullptr;
  auto positions = std::make_shared<std::vector<int32_t>>();
  positions->reserve(keep.size());
  bool differs = sequence.next_position != static_cast<int32_t>(keep.size());
  for (int32_t kv_index : keep) {
    differs |= sequence.PositionOf(kv_index) != static_cast<int32_t>(positions->size());
    positions->push_back(sequence.PositionOf(kv_index));
  }
  return differs ? positions : nullptr;
}

}  // namespace

void SequenceTable::CheckEvict(int64_t id, const std::vector<int32_t>& keep) const {
  RequireNoForward("evict");
  const Sequence& sequence = Get(id);
  if (!sequence.pending.empty()) {
    Throw(ErrorKind::kValue, "sequence ", sequence.id, " has ", sequence.pending.size(),
          " pending nodes; commit or abort them before evicting tokens");
  }
  for (size_t i = 0; i < keep.size(); ++i) {
    if (keep[i] < 0 || keep[i] >= sequence.num_committed) {
      Throw(ErrorKind::kIndex, "kept token ", keep[i], " is not in sequence ", sequence.id,
            ", which has ", sequence.num_committed);
    }
    if (i > 0 && keep[i] <= keep[i - 1]) {
      Throw(ErrorKind::kValue, "kept tokens of sequence ", sequence.id,
            " must be in ascending order, got ", keep[i], " after ", keep[i - 1]);
    }
    if (sequence.evicted.begin <= keep[i] && keep[i] < sequence.evicted.end) {
      Throw(ErrorKind::kValue, "token ", keep[i], " of sequence ", sequence.id,
            " cannot be kept: its sliding window has evicted tokens [", sequence.evicted.begin,
            ", ", sequence.evicted.end, ")");
    }
  }
}

void SequenceTable::Evict(int64_t id, const std::vector<int32_t>& keep, bool renumber,
                          CopyPlan* moves) {
  CheckEvict(id, keep);
  Sequence& sequence = Find(id);
  const int32_t page_size = config_.page_size;
  const auto count = static_cast<int32_t>(keep.size());
  const auto rotation = [&](int32_t i) { return renumber ? i - sequence.PositionOf(keep[i]) : 0; };
  int32_t first = 0;  // kept tokens before it change neither place nor position
  while (first < count && keep[first] == first && rotation(first) == 0) ++first;

  // A page of kept tokens goes where its first token was. No later token is read from there, so the
  // page can be written in place; nothing moves where all tokens of a page stay together.
  const int32_t first_page = first / page_size, num_pages = pages_.PagesFor(count);
  std::vector<int32_t> targets;  // page ids; -1: a new one
  PageReservation reservation(pages_.pool());
  for (int32_t t = first_page; t < num_pages; ++t) {
    const int32_t begin = t * page_size, end = std::min(begin + page_size, count);
    const int32_t source = keep[begin] / page_size;
    bool in_place = true;
    for (int32_t i = begin; i < end && in_place; ++i) {
      in_place = keep[i] == source * page_size + i - begin && rotation(i) == 0;
    }
    const int32_t page = sequence.pages[source];
    const bool alone =
        pages_.pool().ref_count(page) + pages_.NumNewHolders(sequence, first, source) == 1;
    targets.push_back(in_place || alone ? page : -1);
    reservation.NeedNew(targets.back() < 0);
  }
  reservation.Check("evict");
  PositionList positions = PositionsAfter(sequence, keep, renumber);
  MakeRoom(&moves->slots, count);
  if (renumber) MakeRoom(&moves->rotations, count);
  pages_.MakeRoomToPreserve(&sequence, first);
  // Nothing below can fail.
  pages_.Preserve(&sequence, first);
  for (int32_t& page : targets) {
    if (page < 0) {
      page = pages_.pool().Take();
    } else {
      pages_.Retain(page);
    }
  }
  for (int32_t i = first_page * page_size; i < count; ++i) {
    const SlotMove move{Slot(sequence, keep[i]),
                        targets[i / page_size - first_page] * page_size + i % page_size};
    if (move.source != move.target) moves->slots.push_back(move);
    if (rotation(i) != 0)
      moves->rotations.push_back({move.target, sequence.PositionOf(keep[i]), i});
  }
  pages_.ShrinkPages(&sequence, first_page);
  sequence.pages.insert(sequence.pages.end(), targets.begin(), targets.end());
  sequence.num_committed = count;
  if (renumber) sequence.next_position = count;
  sequence.positions = std::move(positions);
  sequence.evicted = {};
  pages_.EvictBehindWindow(&sequence);
}

}  // namespace kvctl
