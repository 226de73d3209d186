// The step in flight: BeginForward, EndForward, AbortForward.
#include <algorithm>
#include <utility>

#include "core/cache/page_reservation.h"
#include "core/cache/sequence_table.h"
#include "core/support/make_room.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

void CheckParents(const Append& append, const PendingRegion& pending) {
  for (int32_t i = 0; i < append.num_rows; ++i) {
    const int32_t node = pending.size() + i;
    if (append.parents[i] < -1 || append.parents[i] >= node) {
      Throw(ErrorKind::kValue, "parents[", i, "] of sequence ", append.sequence_id, " is ",
            append.parents[i], "; the parent of pending node ", node,
            " must be -1 (the committed context) or an earlier node");
    }
  }
}

void CheckAppend(const Append& append, const Sequence& sequence) {
  const int64_t id = append.sequence_id;
  if (append.num_rows < 1) {
    Throw(ErrorKind::kValue, "sequence ", id, " would append ", append.num_rows,
          " tokens; it must be at least 1");
  }
  if (!append.pending && !sequence.pending.empty()) {
    Throw(ErrorKind::kValue, "sequence ", id, " has ", sequence.pending.size(),
          " pending nodes; commit or abort them first, or append pending nodes");
  }
  if (append.pending && append.parents == nullptr && !sequence.pending.chain) {
    Throw(ErrorKind::kValue, "the pending region of sequence ", id,
          " branches: say with a tree mask where the new nodes hang");
  }
  if (append.parents != nullptr) CheckParents(append, sequence.pending);
  // Pending tokens are committed at positions that follow one another.
  const bool slides = sequence.window.size > 0 && !append.pending;
  int32_t least =
      slides && sequence.num_committed > 0 ? sequence.PositionOf(sequence.num_committed - 1) : 0;
  for (int32_t i = 0; append.positions != nullptr && i < append.num_rows; ++i) {
    if (append.positions[i] < 0 || append.positions[i] >= kPositionLimit) {
      Throw(ErrorKind::kValue, "positions[", i, "] of sequence ", id, " is ", append.positions[i],
            "; it must be in [0, 2^30)");
    }
    if (append.positions[i] < least) {
      Throw(ErrorKind::kValue, "positions[", i, "] of sequence ", id, " is ", append.positions[i],
            " after ", least, "; under a sliding window positions must not descend");
    }
    if (slides) least = append.positions[i];
  }
}

}  // namespace

void SequenceTable::CheckPagesForStep(const std::vector<Append>& appends) {
  PageReservation reservation(pool_);
  for (const Append& append : appends) {
    const Sequence& sequence = Get(append.sequence_id);
    const int32_t kv_len = sequence.kv_len();
    reservation.NeedNew(PagesFor(kv_len + append.num_rows) -
                        static_cast<int32_t>(sequence.pages.size()));
    if (kv_len % config_.page_size != 0) {
      reservation.NeedWritable(sequence.pages[kv_len / config_.page_size], 0);
    }
  }
  reservation.Check("begin_forward");
}

void SequenceTable::BeginForward(const std::vector<Append>& appends, CopyPlan* moves) {
  RequireNoForward("begin_forward");
  if (appends.empty()) Throw(ErrorKind::kValue, "begin_forward needs at least one sequence");
  ++batch_mark_;
  int64_t rows = 0;
  for (const Append& append : appends) {
    CheckAppend(append, NameInBatch(append.sequence_id));
    rows += append.num_rows;
  }
  if (rows > config_.max_rows) {
    Throw(ErrorKind::kValue, "the step has ", rows,
          " new tokens; the cache was created for at most ", config_.max_rows,
          " (prefill_chunk_size)");
  }
  CheckPagesForStep(appends);

  forward_.entries.clear();
  forward_.plan.sequences.clear();
  forward_.plan.slots.clear();
  forward_.plan.positions.clear();
  forward_.active = true;
  try {
    for (const Append& append : appends) Reserve(append, moves);
  } catch (...) {  // out of host memory
    AbortForward(nullptr);
    moves->clear();
    throw;
  }
}

void SequenceTable::Reserve(const Append& append, CopyPlan* moves) {
  Sequence& sequence = Find(append.sequence_id);
  const int32_t kv_len = sequence.kv_len();
  const int32_t first_page = kv_len / config_.page_size;
  forward_.entries.push_back(
      {&sequence, append.num_rows, append.pending, append.positions != nullptr && !append.pending,
       forward_.plan.num_query_tokens(), static_cast<int32_t>(sequence.pages.size()),
       sequence.pending.size(), -1, -1, nullptr});
  ForwardEntry& entry = forward_.entries.back();
  // end_forward does not allocate.
  if (!append.pending && sequence.positions != nullptr) {
    MakeRoom(sequence.positions.get(), append.num_rows);
  } else if (entry.explicit_positions) {
    entry.positions = sequence.PositionsFor(append.positions, append.num_rows);
  }
  if (kv_len % config_.page_size != 0 && pool_.shared(sequence.pages[first_page])) {
    const int32_t shared_page = sequence.pages[first_page];
    CopyOnWrite(&sequence, first_page, moves);
    entry.copied_index = first_page;
    entry.copied_page = shared_page;
  }
  const int32_t num_pages = PagesFor(kv_len + append.num_rows);
  MakeRoom(&sequence.pages, num_pages - sequence.pages.size());
  while (static_cast<int32_t>(sequence.pages.size()) < num_pages) {
    sequence.pages.push_back(pool_.Take());
  }
  PlanRows(append, entry);
}

void SequenceTable::PlanRows(const Append& append, const ForwardEntry& entry) {
  Sequence& sequence = *entry.sequence;
  StepPlan& plan = forward_.plan;
  const int32_t first_index = sequence.kv_len();
  for (int32_t i = 0; i < append.num_rows; ++i) {
    int32_t depth = i;
    if (append.pending) {
      const int32_t parent = append.parents ? append.parents[i] : sequence.pending.size() - 1;
      sequence.pending.Push(parent, 0);
      depth = sequence.pending.depths.back();
    }
    const int32_t position =
        append.positions ? append.positions[i] : sequence.next_position + depth;
    if (append.pending) sequence.pending.positions.back() = position;
    plan.slots.push_back(Slot(sequence, first_index + i));
    plan.positions.push_back(position);
  }
  const PendingRegion& pending = sequence.pending;
  const bool branches = append.pending && !pending.chain;
  plan.sequences.push_back(
      {entry.query_begin, append.num_rows, sequence.num_committed,
       append.pending ? pending.size() : append.num_rows, sequence.pages.data(),
       branches ? pending.parents.data() : nullptr, branches ? pending.depths.data() : nullptr,
       sequence.positions ? sequence.positions->data() : nullptr, sequence.next_position});
}

bool SequenceTable::StepCommits() const {
  return forward_.active && std::any_of(forward_.entries.begin(), forward_.entries.end(),
                                        [](const ForwardEntry& entry) { return !entry.pending; });
}

void SequenceTable::EndForward(bool all_layers_written) {
  if (!forward_.active) Throw(ErrorKind::kRuntime, "end_forward without a begin_forward");
  for (ForwardEntry& entry : forward_.entries) {
    if (entry.pending) {
      PendingRegion& pending = entry.sequence->pending;
      if (all_layers_written && pending.num_written == entry.old_num_pending)
        pending.num_written = pending.size();
      continue;
    }
    if (entry.positions != nullptr) entry.sequence->positions = std::move(entry.positions);
    if (entry.explicit_positions) {
      for (int32_t i = 0; i < entry.num_rows; ++i) {
        entry.sequence->PushCommitted(forward_.plan.positions[entry.query_begin + i]);
      }
    } else {
      entry.sequence->ExtendCommitted(entry.num_rows);
    }
    EvictBehindWindow(entry.sequence);
  }
  forward_.active = false;
}

void SequenceTable::AbortForward(CopyPlan* moves) {
  if (!forward_.active) return;
  // Backwards, so that a page that two entries copied returns to each as it was.
  for (auto entry = forward_.entries.rbegin(); entry != forward_.entries.rend(); ++entry) {
    Sequence& sequence = *entry->sequence;
    sequence.pending.Truncate(entry->old_num_pending);
    ShrinkPages(&sequence, entry->old_num_pages);
    if (entry->copied_index >= 0) {
      // Whoever was then alone with the page that was copied wrote into it behind its own tokens,
      // where this sequence may have some: its copy knows them.
      const int32_t first = entry->copied_index * config_.page_size;
      for (int32_t i = 0; moves != nullptr && first + i < sequence.kv_len(); ++i) {
        moves->slots.push_back(
            {Slot(sequence, first + i), entry->copied_page * config_.page_size + i});
      }
      pool_.Release(sequence.pages[entry->copied_index]);
      pool_.Retain(entry->copied_page);
      sequence.pages[entry->copied_index] = entry->copied_page;
    }
  }
  forward_.active = false;
}

}  // namespace kvctl
