#include "runtime/model/replay_log.h"

#include <algorithm>

namespace kvctl {

SequenceTokens SequenceTokens::First(int64_t count) const {
  const auto all = static_cast<int64_t>(committed.size());
  const int64_t inside =
      std::min(std::max<int64_t>(count - all, 0), static_cast<int64_t>(pending.size()));
  SequenceTokens tokens;
  tokens.committed.assign(committed.begin(), committed.begin() + std::min(count, all));
  tokens.pending.assign(pending.begin(), pending.begin() + inside);
  tokens.special = std::min(special, static_cast<int64_t>(tokens.committed.size()));
  tokens.pending_special = pending_special && inside > 0;
  return tokens;
}

SequenceTokens SequenceTokens::Kept(const std::vector<int32_t>& path) const {
  SequenceTokens tokens;
  tokens.committed = committed;
  for (int32_t node : path) tokens.committed.push_back(pending.at(node));
  const bool ends_special = pending_special && !path.empty();
  tokens.special = ends_special ? static_cast<int64_t>(tokens.committed.size()) : special;
  return tokens;
}

void SequenceTokens::Append(const int32_t* tokens, int64_t count, bool are_pending,
                            bool are_special) {
  std::vector<int32_t>& end = are_pending ? pending : committed;
  end.insert(end.end(), tokens, tokens + count);
  if (!are_special) return;
  if (are_pending) {
    pending_special = true;
  } else {
    special = static_cast<int64_t>(committed.size());
  }
}

}  // namespace kvctl
