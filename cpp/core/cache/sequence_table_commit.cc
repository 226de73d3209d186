// Commit: which pending nodes are kept, and where their K and V go.
#include <string>
#include <utility>

#include "core/cache/page_reservation.h"
#include "core/cache/sequence_table.h"
#include "core/support/make_room.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

/*! \brief How many kept nodes already lie at the KV index where they will be committed. */
int32_t NumInPlace(const std::vector<int32_t>& kept) {
  int32_t count = 0;
  while (count < static_cast<int32_t>(kept.size()) && kept[count] == count) ++count;
  return count;
}

/*! \brief The name of a node, or of the committed context for -1. */
std::string NameOf(int32_t node) {
  return node < 0 ? "the committed context" : "node " + std::to_string(node);
}

/*! \brief Checks that the nodes kept before kept[i] are those that it was computed behind. */
void CheckOnPath(const Sequence& sequence, const std::vector<int32_t>& kept, size_t i) {
  const PendingRegion& pending = sequence.pending;
  const int32_t node = kept[i], before = i == 0 ? -1 : kept[i - 1];
  if (pending.is_masked(node)) return;
  const int32_t parent = pending.parents[node];
  if (parent != before) {
    Throw(ErrorKind::kValue, "kept node ", node, " of sequence ", sequence.id, " hangs on ",
          NameOf(parent), ", and the one kept before it is ", NameOf(before),
          "; keep a path from the committed context, or ask for any nodes by name");
  }
  // Only where nodes under a mask lie above: the parent is kept, and what it was computed behind is
  // not.
  if (pending.depths[node] != static_cast<int32_t>(i)) {
    Throw(ErrorKind::kValue, "kept node ", node, " of sequence ", sequence.id,
          " hangs on a path of ", pending.depths[node], " nodes, of which ", i,
          " are kept; keep the path from the committed context, or ask for any nodes by name");
  }
}

}  // namespace

void SequenceTable::ValidateKept(const Sequence& sequence, const std::vector<int32_t>& kept,
                                 KeptNodes which) const {
  const PendingRegion& pending = sequence.pending;
  for (size_t i = 0; i < kept.size(); ++i) {
    if (kept[i] < 0 || kept[i] >= pending.size()) {
      Throw(ErrorKind::kIndex, "kept node ", kept[i], " is not in the pending region of sequence ",
            sequence.id, ", which has ", pending.size(), " nodes");
    }
    if (i > 0 && kept[i] <= kept[i - 1]) {
      Throw(ErrorKind::kValue, "kept nodes of sequence ", sequence.id,
            " must be in ascending order, got ", kept[i], " after ", kept[i - 1]);
    }
    if (kept[i] >= pending.num_written) {
      Throw(ErrorKind::kValue, "kept node ", kept[i], " of sequence ", sequence.id,
            " cannot be committed: node ", pending.num_written,
            " was added by a step that left layers out, so it and later nodes can only be "
            "dropped");
    }
    const int32_t expected = sequence.next_position + static_cast<int32_t>(i);
    if (pending.positions[kept[i]] != expected) {
      Throw(ErrorKind::kValue, "kept node ", kept[i], " of sequence ", sequence.id,
            " was computed at position ", pending.positions[kept[i]],
            " and would be committed at position ", expected,
            "; keep nodes whose positions follow one another (a path of the tree)");
    }
    if (which == KeptNodes::kPath) CheckOnPath(sequence, kept, i);
  }
}

void SequenceTable::MakeRoomToCommit(const std::vector<std::vector<int32_t>>& kept,
                                     CopyPlan* moves) {
  PageReservation reservation(pages_.pool());
  size_t num_moved = 0;
  for (size_t i = 0; i < batch_.size(); ++i) {
    Sequence& sequence = *batch_[i];
    const int32_t first = sequence.num_committed + NumInPlace(kept[i]);
    const int32_t end = sequence.num_committed + static_cast<int32_t>(kept[i].size());
    pages_.MakeRoomToPreserve(&sequence, first);
    if (sequence.positions != nullptr) MakeRoom(sequence.positions.get(), kept[i].size());
    if (first == end) continue;
    num_moved += end - first;
    for (int32_t page = first / config_.page_size; page <= (end - 1) / config_.page_size; ++page) {
      reservation.NeedWritable(sequence.pages[page], pages_.NumNewHolders(sequence, first, page));
    }
  }
  reservation.Check("commit");
  MakeRoom(&moves->slots, num_moved);
  MakeRoom(&moves->pages, num_moved);
}

void SequenceTable::CommitKept(Sequence* sequence, const std::vector<int32_t>& kept,
                               CopyPlan* moves) {
  const int32_t base = sequence->num_committed;
  const int32_t in_place = NumInPlace(kept);
  const int32_t count = static_cast<int32_t>(kept.size());
  pages_.Preserve(sequence, base + in_place);
  if (in_place < count) {
    const int32_t last_page = (base + count - 1) / config_.page_size;
    for (int32_t page = (base + in_place) / config_.page_size; page <= last_page; ++page) {
      pages_.CopyOnWrite(sequence, page, moves);
    }
  }
  for (int32_t i = in_place; i < count; ++i) {
    moves->slots.push_back({Slot(*sequence, base + kept[i]), Slot(*sequence, base + i)});
  }
  sequence->pending.Truncate(0);
  sequence->ExtendCommitted(count);
}

void SequenceTable::Commit(const std::vector<int64_t>& ids,
                           const std::vector<std::vector<int32_t>>& kept, CopyPlan* moves,
                           KeptNodes which) {
  RequireNoForward("commit");
  if (ids.size() != kept.size()) {
    Throw(ErrorKind::kValue, "commit names ", ids.size(), " sequences and gives the kept nodes of ",
          kept.size());
  }
  BeginBatch();
  for (size_t i = 0; i < ids.size(); ++i) ValidateKept(NameInBatch(ids[i]), kept[i], which);
  MakeRoomToCommit(kept, moves);
  // Nothing below can fail.
  for (size_t i = 0; i < ids.size(); ++i) CommitKept(batch_[i], kept[i], moves);
  // Free pages only now. A page freed earlier could become the target of another sequence's page
  // copy, which runs before the tokens kept from the page are read.
  for (Sequence* sequence : batch_) {
    pages_.ShrinkPages(sequence, pages_.PagesFor(sequence->num_committed));
    pages_.EvictBehindWindow(sequence);
  }
}

}  // namespace kvctl
