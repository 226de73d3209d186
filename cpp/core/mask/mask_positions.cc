#include "core/mask/mask_positions.h"

#include <algorithm>

#include "kvctl/error.h"

namespace kvctl {

LogicalPositions::LogicalPositions(const SequencePlan& sequence) : sequence_(sequence) {
  const int32_t* begin = sequence.committed_positions;
  if (begin == nullptr) return;
  const int32_t* end = begin + sequence.num_committed;
  const int32_t* found = std::is_sorted_until(begin, end);
  if (found == end) {
    if (begin == end || end[-1] <= sequence.next_position) return;
    Throw(ErrorKind::kValue,
          "windows and prefix_lm measure positions, which must not descend: the ",
          "next token would have position ", sequence.next_position, " and the last one has ",
          end[-1]);
  }
  Throw(ErrorKind::kValue,
        "windows and prefix_lm measure positions, which must not descend: token ", found - begin,
        " has position ", *found, " and the one before it ", found[-1]);
}

int32_t LogicalPositions::CountBelow(int64_t bound) const {
  const int32_t committed = sequence_.num_committed;
  if (sequence_.committed_positions != nullptr) {
    const int32_t* begin = sequence_.committed_positions;
    const auto count =
        static_cast<int32_t>(std::lower_bound(begin, begin + committed, bound) - begin);
    if (count < committed) return count;
  } else if (bound < committed) {
    return static_cast<int32_t>(std::max<int64_t>(bound, 0));
  }
  if (sequence_.parents != nullptr) return committed;
  const int64_t pending =
      std::clamp<int64_t>(bound - sequence_.next_position, 0, sequence_.num_pending);
  return committed + static_cast<int32_t>(pending);
}

void LogicalPositions::AddWindow(int32_t query, int32_t size, int32_t sinks,
                                 RangeLists* lists) const {
  const int32_t own = sequence_.num_pending - sequence_.num_query_tokens + query;
  const int64_t oldest = int64_t(OfPending(own)) - size + 1;
  if (sequence_.parents == nullptr) {
    const int32_t end = sequence_.num_committed + own + 1;
    lists->Add({0, std::min(CountBelow(sinks), end)});
    lists->Add({CountBelow(oldest), end});
    return;
  }
  lists->Add({0, CountBelow(sinks)});
  lists->Add({CountBelow(oldest), sequence_.num_committed});
  for (int32_t j = 0; j < sequence_.num_pending; ++j) {
    const int32_t key = sequence_.num_committed + j;
    if (OfPending(j) >= oldest || OfPending(j) < sinks) lists->Add({key, key + 1});
  }
}

void LogicalPositions::AddPrefix(int32_t query, int32_t length, RangeLists* lists) const {
  const int32_t own = sequence_.num_pending - sequence_.num_query_tokens + query;
  if (sequence_.parents == nullptr) {
    lists->Add({0, std::max(CountBelow(length), sequence_.num_committed + own + 1)});
    return;
  }
  lists->Add({0, CountBelow(length)});
  for (int32_t j = 0; j < sequence_.num_pending; ++j) {
    const int32_t key = sequence_.num_committed + j;
    if (OfPending(j) < length) lists->Add({key, key + 1});
  }
}

}  // namespace kvctl
