#include "runtime/model/batch.h"

#include <algorithm>
#include <unordered_set>

#include "kvctl/error.h"

namespace kvctl {

void CheckBatch(const std::vector<int64_t>& seq_ids, size_t count, const char* what) {
  if (seq_ids.size() != count) {
    Throw(ErrorKind::kValue, seq_ids.size(), " sequences were named and ", count, " ", what,
          " given");
  }
  if (seq_ids.empty()) Throw(ErrorKind::kValue, "no sequences were named");
  std::unordered_set<int64_t> seen;
  for (int64_t id : seq_ids) {
    if (!seen.insert(id).second) {
      Throw(ErrorKind::kValue, "sequence ", id, " is named twice in one batch");
    }
  }
}

std::vector<std::vector<PromptPiece>> CutIntoSteps(const std::vector<int64_t>& lengths,
                                                   int64_t chunk, bool one_sequence_per_step) {
  std::vector<std::vector<PromptPiece>> steps;
  int64_t room = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int64_t length = lengths[i];
    if (one_sequence_per_step) room = 0;
    for (int64_t begin = 0; begin < length;) {
      if (room == 0) {
        steps.emplace_back();
        room = chunk;
      }
      const int64_t end = std::min(length, begin + room);
      steps.back().push_back({i, begin, end});
      room -= end - begin;
      begin = end;
    }
  }
  return steps;
}

bool CanCut(const StepRequest& request) { return !request.mask && request.parents == nullptr; }

std::vector<std::vector<StepRequest>> CutIntoSteps(const std::vector<StepRequest>& requests,
                                                   int64_t chunk, bool one_sequence_per_step) {
  std::vector<std::vector<StepRequest>> steps;
  int64_t room = 0;
  for (const StepRequest& request : requests) {
    const int64_t length = request.append_length;
    if (one_sequence_per_step) room = 0;
    const int64_t piece = CanCut(request) ? std::min(length, chunk) : length;
    for (int64_t begin = 0; begin < length; begin += piece) {
      const int64_t count = std::min(piece, length - begin);
      if (count > room) {
        steps.emplace_back();
        room = chunk;
      }
      room -= count;
      steps.back().push_back(request);
      StepRequest& part = steps.back().back();
      part.append_length = count;
      if (part.positions != nullptr) part.positions += begin;
    }
  }
  return steps;
}

void CheckFreePages(const PagedKVCache& cache, const std::vector<int64_t>& seq_ids,
                    const std::vector<int64_t>& lengths) {
  if (!cache.defined()) return;
  const int64_t page_size = cache->config().page_size;
  const auto pages_for = [&](int64_t length) { return (length + page_size - 1) / page_size; };
  int64_t needed = 0;
  int64_t tokens = 0;
  for (size_t i = 0; i < seq_ids.size(); ++i) {
    if (cache->HasWindow(seq_ids[i])) continue;  // a window frees pages as the sequence grows
    const int64_t present = cache->GetSequenceLength(seq_ids[i]);
    needed += pages_for(present + lengths[i]) - pages_for(present);
    tokens += lengths[i];
  }
  const int64_t available = cache->GetNumAvailablePages();
  if (needed > available) {
    Throw(ErrorKind::kOutOfPages, tokens, " new tokens need ", needed, " more pages of ", page_size,
          " tokens, and ", available, " of the cache's ", cache->config().num_pages, " are free");
  }
}

void CheckNothingPending(const PagedKVCache& cache, const RecurrentState& state, int64_t seq_id) {
  const int64_t pending =
      cache.defined() ? cache->PendingLength(seq_id) : state->PendingLength(seq_id);
  if (pending == 0) return;
  Throw(ErrorKind::kValue, "sequence ", seq_id, " has ", pending,
        " pending nodes; commit or abort them before another tree, or grow their tree with forward "
        "and a tree mask, whose parents are pending nodes");
}

void CheckContext(const PagedKVCache& cache, const RecurrentState& state, int64_t context,
                  int64_t seq_id, int64_t length) {
  if (context < 1) return;
  if (cache.defined() && cache->HasWindow(seq_id)) return;
  const int64_t present =
      cache.defined() ? cache->GetSequenceLength(seq_id) : state->SequenceLength(seq_id);
  if (length <= context - present) return;
  Throw(ErrorKind::kValue, length, " new tokens for sequence ", seq_id, ", which holds ", present,
        ", go beyond the model's context window of ", context, " tokens");
}

}  // namespace kvctl
