// The step in flight: BeginForward, EndForward, AbortForward.
#include <algorithm>
#include <numeric>
#include <utility>

#include "core/cache/page_reservation.h"
#include "core/cache/sequence_table.h"
#include "core/support/make_room.h"
#include "core/support/narrow.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

void CheckParents(const StepRequest& request, const PendingRegion& pending) {
  for (int32_t i = 0; i < request.append_length; ++i) {
    const int32_t node = pending.size() + i;
    if (request.parents[i] < -1 || request.parents[i] >= node) {
      Throw(ErrorKind::kValue, "parents[", i, "] of sequence ", request.seq_id, " is ",
            request.parents[i], "; the parent of pending node ", node,
            " must be -1 (the committed context) or an earlier node");
    }
  }
}

void CheckResumed(const StepRequest& request, const Sequence& sequence) {
  const PendingRegion& pending = sequence.pending;
  if (pending.num_written >= pending.size()) {
    Throw(ErrorKind::kValue, "sequence ", sequence.id,
          " has no pending nodes that lack K and V in some layer");
  }
  if (request.append_length != pending.size() || request.positions || request.mask) {
    Throw(ErrorKind::kValue, "a step that resumes sequence ", sequence.id, " takes its ",
          pending.size(), " pending nodes as they are");
  }
  for (int32_t node = 0; node < pending.size(); ++node) {
    if (pending.is_masked(node)) {
      Throw(ErrorKind::kValue, "pending nodes of sequence ", sequence.id,
            " came under a mask that is no tree, so that they cannot be resumed");
    }
  }
}

void CheckRequest(const StepRequest& request, const Sequence& sequence) {
  const int64_t id = request.seq_id;
  if (request.resume) return CheckResumed(request, sequence);
  if (request.append_length < 1) {
    Throw(ErrorKind::kValue, "sequence ", id, " would append ", request.append_length,
          " tokens; it must be at least 1");
  }
  Narrow(request.append_length, "append length");
  const bool pending = request.AppendsPending();
  if (!pending && !sequence.pending.empty()) {
    Throw(ErrorKind::kValue, "sequence ", id, " has ", sequence.pending.size(),
          " pending nodes; commit or abort them first, or append pending nodes");
  }
  if (pending && request.parents == nullptr && !sequence.pending.chain) {
    Throw(ErrorKind::kValue, "the pending region of sequence ", id,
          " branches: give the parents of the new nodes with a tree mask");
  }
  if (request.parents != nullptr) CheckParents(request, sequence.pending);
  // Pending tokens are committed at consecutive positions.
  const bool windowed = sequence.window.size > 0 && !pending;
  int32_t least =
      windowed && sequence.num_committed > 0 ? sequence.PositionOf(sequence.num_committed - 1) : 0;
  for (int32_t i = 0; request.positions != nullptr && i < request.append_length; ++i) {
    if (request.positions[i] < 0 || request.positions[i] >= kPositionLimit) {
      Throw(ErrorKind::kValue, "positions[", i, "] of sequence ", id, " is ", request.positions[i],
            "; it must be in [0, 2^30)");
    }
    if (request.positions[i] < least) {
      Throw(ErrorKind::kValue, "positions[", i, "] of sequence ", id, " is ", request.positions[i],
            " after ", least, "; under a sliding window positions must not descend");
    }
    if (windowed) least = request.positions[i];
  }
}

}  // namespace

void SequenceTable::CheckPagesForStep(const std::vector<StepRequest>& requests) {
  PageReservation reservation(pages_.pool());
  for (size_t i = 0; i < requests.size(); ++i) {
    const StepRequest& request = requests[i];
    if (request.resume) continue;
    const Sequence& sequence = *batch_[i];
    const int32_t kv_len = sequence.kv_len();
    reservation.NeedNew(pages_.PagesFor(kv_len + static_cast<int32_t>(request.append_length)) -
                        static_cast<int32_t>(sequence.pages.size()));
    if (kv_len % config_.page_size != 0) {
      reservation.NeedWritable(sequence.pages[kv_len / config_.page_size], 0);
    }
  }
  reservation.Check("begin_forward");
}

void SequenceTable::BeginForward(const std::vector<StepRequest>& requests, CopyPlan* moves) {
  RequireNoForward("begin_forward");
  if (requests.empty()) Throw(ErrorKind::kValue, "begin_forward needs at least one sequence");
  BeginBatch();
  int64_t num_tokens = 0;
  for (const StepRequest& request : requests) {
    if (request.resume != requests[0].resume) {
      Throw(ErrorKind::kValue, "a step resumes pending nodes or has new tokens, not both");
    }
    const Sequence& sequence = NameInBatch(request.seq_id);
    CheckRequest(request, sequence);
    num_tokens += request.append_length;
    if (request.resume) CheckOwnPages(sequence);
  }
  if (num_tokens > config_.max_rows) {
    Throw(ErrorKind::kValue, "the step has ", num_tokens,
          " new tokens; the cache was created for at most ", config_.max_rows,
          " (prefill_chunk_size)");
  }
  CheckPagesForStep(requests);

  forward_.sequences.clear();
  forward_.plan.sequences.clear();
  forward_.plan.slots.resize(num_tokens);
  forward_.plan.positions.resize(num_tokens);
  forward_.active = true;
  try {
    int64_t row = 0;
    for (size_t i = 0; i < requests.size(); ++i) {
      Reserve(requests[i], batch_[i], static_cast<int32_t>(row), moves);
      row += requests[i].append_length;
    }
  } catch (...) {  // out of host memory
    AbortForward(nullptr);
    moves->clear();
    throw;
  }
}

void SequenceTable::CheckOwnPages(const Sequence& sequence) {
  const int32_t first = sequence.num_committed / config_.page_size;
  for (int32_t page = first; page < static_cast<int32_t>(sequence.pages.size()); ++page) {
    if (pages_.pool().shared(sequence.pages[page])) {
      Throw(ErrorKind::kValue, "pending nodes of sequence ", sequence.id,
            " lie in a page that a fork or a checkpoint shares, so that they cannot be resumed");
    }
  }
}

void SequenceTable::PlanResumed(Sequence* sequence, int32_t query_begin) {
  const PendingRegion& pending = sequence->pending;
  StepPlan& plan = forward_.plan;
  forward_.sequences.push_back({sequence, pending.size(), true, false, query_begin,
                                static_cast<int32_t>(sequence->pages.size()), pending.size(), -1,
                                -1, nullptr, true});
  plan.sequences.push_back(
      {query_begin, pending.size(), sequence->num_committed, pending.size(), sequence->pages.data(),
       pending.chain ? nullptr : pending.parents.data(),
       pending.chain ? nullptr : pending.depths.data(),
       sequence->positions ? sequence->positions->data() : nullptr, sequence->next_position});
  for (int32_t node = 0; node < pending.size(); ++node) {
    plan.slots[query_begin + node] = Slot(*sequence, sequence->num_committed + node);
    plan.positions[query_begin + node] = pending.positions[node];
  }
}

void SequenceTable::Reserve(const StepRequest& request, Sequence* reserved, int32_t query_begin,
                            CopyPlan* moves) {
  Sequence& sequence = *reserved;
  if (request.resume) return PlanResumed(&sequence, query_begin);
  const int32_t kv_len = sequence.kv_len();
  const int32_t first_page = kv_len / config_.page_size;
  const auto append_length = static_cast<int32_t>(request.append_length);
  const bool pending = request.AppendsPending();
  forward_.sequences.push_back(
      {&sequence, append_length, pending, request.positions != nullptr && !pending, query_begin,
       static_cast<int32_t>(sequence.pages.size()), sequence.pending.size(), -1, -1, nullptr});
  PlannedSequence& planned = forward_.sequences.back();
  // Reserve now: EndForward must not allocate.
  if (!pending && sequence.positions != nullptr) {
    MakeRoom(sequence.positions.get(), append_length);
  } else if (planned.explicit_positions) {
    planned.positions = sequence.PositionsFor(request.positions, append_length);
  }
  if (kv_len % config_.page_size != 0 && pages_.pool().shared(sequence.pages[first_page])) {
    const int32_t shared_page = sequence.pages[first_page];
    pages_.CopyOnWrite(&sequence, first_page, moves);
    planned.copied_index = first_page;
    planned.copied_page = shared_page;
  }
  const int32_t num_pages = pages_.PagesFor(kv_len + append_length);
  MakeRoom(&sequence.pages, num_pages - sequence.pages.size());
  while (static_cast<int32_t>(sequence.pages.size()) < num_pages) {
    sequence.pages.push_back(pages_.pool().Take());
  }
  PlanTokens(request, planned);
}

void SequenceTable::PlanTokens(const StepRequest& request, const PlannedSequence& planned) {
  Sequence& sequence = *planned.sequence;
  StepPlan& plan = forward_.plan;
  const int32_t count = planned.append_length, first_index = sequence.kv_len();
  const int32_t first_node = sequence.pending.size();
  int32_t* const slots = plan.slots.data() + planned.query_begin;
  int32_t* const positions = plan.positions.data() + planned.query_begin;
  // One division for all tokens: a division for each took a quarter of this function's time.
  int32_t page = first_index / config_.page_size, offset = first_index % config_.page_size;
  for (int32_t i = 0; i < count; ++page, offset = 0) {
    const int32_t slot = sequence.pages[page] * config_.page_size + offset - i;
    const int32_t end = std::min(count, i + config_.page_size - offset);
    for (; i < end; ++i) slots[i] = slot + i;
  }
  if (planned.pending) {
    const bool is_masked = request.parents == nullptr && request.mask.has_value();
    sequence.pending.Append(request.parents, count, is_masked);
  }
  const PendingRegion& pending = sequence.pending;
  const int32_t next = sequence.next_position;
  if (request.positions != nullptr) {
    std::copy_n(request.positions, count, positions);
  } else if (planned.pending) {
    const int32_t* depths = pending.depths.data() + first_node;
    for (int32_t i = 0; i < count; ++i) positions[i] = next + depths[i];
  } else {
    std::iota(positions, positions + count, next);
  }
  if (planned.pending) {
    std::copy_n(positions, count, sequence.pending.positions.begin() + first_node);
  }
  const bool branches = planned.pending && !pending.chain;
  plan.sequences.push_back(
      {planned.query_begin, planned.append_length, sequence.num_committed,
       planned.pending ? pending.size() : planned.append_length, sequence.pages.data(),
       branches ? pending.parents.data() : nullptr, branches ? pending.depths.data() : nullptr,
       sequence.positions ? sequence.positions->data() : nullptr, sequence.next_position});
}

bool SequenceTable::StepCommits() const {
  return forward_.active &&
         std::any_of(forward_.sequences.begin(), forward_.sequences.end(),
                     [](const PlannedSequence& planned) { return !planned.pending; });
}

void SequenceTable::EndForward(int32_t first_missing) {
  if (!forward_.active) Throw(ErrorKind::kRuntime, "end_forward without a begin_forward");
  for (PlannedSequence& planned : forward_.sequences) {
    if (planned.pending) {
      PendingRegion& pending = planned.sequence->pending;
      if (first_missing < 0) {
        if (planned.resumes || pending.num_written == planned.old_num_pending) {
          pending.num_written = pending.size();
        }
      } else if (pending.num_written == planned.old_num_pending || planned.resumes) {
        pending.layers_written = first_missing;
      } else {
        pending.layers_written = std::min(pending.layers_written, first_missing);
      }
      continue;
    }
    if (planned.positions != nullptr) planned.sequence->positions = std::move(planned.positions);
    if (planned.explicit_positions) {
      for (int32_t i = 0; i < planned.append_length; ++i) {
        planned.sequence->PushCommitted(forward_.plan.positions[planned.query_begin + i]);
      }
    } else {
      planned.sequence->ExtendCommitted(planned.append_length);
    }
    pages_.EvictBehindWindow(planned.sequence);
  }
  forward_.active = false;
}

void SequenceTable::AbortForward(CopyPlan* moves) {
  if (!forward_.active) return;
  // In reverse order, so that a page copied by two sequences returns to both.
  for (auto planned = forward_.sequences.rbegin(); planned != forward_.sequences.rend();
       ++planned) {
    Sequence& sequence = *planned->sequence;
    sequence.pending.Truncate(planned->old_num_pending);
    pages_.ShrinkPages(&sequence, planned->old_num_pages);
    if (planned->copied_index >= 0) {
      // The last holder of the copied page wrote into it behind its own tokens, where this sequence
      // may have tokens. Restore those from this sequence's copy.
      const int32_t first = planned->copied_index * config_.page_size;
      for (int32_t i = 0; moves != nullptr && first + i < sequence.kv_len(); ++i) {
        moves->slots.push_back(
            {Slot(sequence, first + i), planned->copied_page * config_.page_size + i});
      }
      pages_.pool().Release(sequence.pages[planned->copied_index]);
      pages_.pool().Retain(planned->copied_page);
      sequence.pages[planned->copied_index] = planned->copied_page;
    }
  }
  forward_.active = false;
}

}  // namespace kvctl
