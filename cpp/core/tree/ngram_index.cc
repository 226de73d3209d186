#include "core/tree/ngram_index.h"

#include <algorithm>

#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr int32_t kRoot = 0;        // the trie's empty n-gram
constexpr size_t kCandidates = 16;  // occurrences examined; more cost time and rarely match longer

void CheckLimit(const char* name, int64_t value) {
  if (value < 0) Throw(ErrorKind::kValue, name, " must not be negative, got ", value);
}

}  // namespace

NgramIndex::NgramIndex() : latest_(1, -1) {}

int32_t NgramIndex::Child(int32_t node, int32_t token) {
  const uint64_t key = static_cast<uint64_t>(node) << 32 | static_cast<uint32_t>(token);
  const auto found = children_.find(key);
  if (found != children_.end()) return found->second;
  // latest_ first: if the table cannot grow, a node without an entry does no harm.
  latest_.push_back(-1);
  const int32_t child = static_cast<int32_t>(latest_.size()) - 1;
  children_.emplace(key, child);
  return child;
}

void NgramIndex::Append(const int32_t* tokens, size_t count) {
  const int32_t old_size = size();
  try {
    for (size_t i = 0; i < count; ++i) {
      Entry entry;
      entry.token = tokens[i];
      for (int32_t n = 1; n <= kMaxOrder; ++n) {
        int32_t& node = entry.nodes[n - 1];
        node =
            n > size() + 1 ? -1 : Child(n == 1 ? kRoot : entries_.back().nodes[n - 2], tokens[i]);
        entry.previous[n - 1] = node < 0 ? -1 : latest_[node];
      }
      entries_.push_back(entry);
      for (int32_t node : entry.nodes) {
        if (node >= 0) latest_[node] = size() - 1;
      }
    }
  } catch (...) {
    Truncate(old_size);
    throw;
  }
}

void NgramIndex::Truncate(int64_t new_size) {
  if (new_size < 0 || new_size > size()) {
    Throw(ErrorKind::kValue, "cannot truncate a text of ", size(), " tokens to ", new_size);
  }
  while (size() > new_size) {
    const Entry& last = entries_.back();
    for (int32_t n = 1; n <= kMaxOrder; ++n) {
      if (last.nodes[n - 1] >= 0) latest_[last.nodes[n - 1]] = last.previous[n - 1];
    }
    entries_.pop_back();
  }
}

// The length of the match between the texts that end at `position` and at the last position, of
// which `known` tokens are known to match.
int32_t NgramIndex::MatchLength(int32_t position, int32_t known) const {
  const int32_t last = size() - 1;
  const int32_t limit = std::min(kMaxMatch, position + 1);
  int32_t length = known;
  while (length < limit && token(position - length) == token(last - length)) ++length;
  return length;
}

// Earlier occurrences of the last tokens, longest first, of equally long ones the latest first.
std::vector<NgramIndex::Match> NgramIndex::Matches(size_t limit) const {
  std::vector<Match> matches;
  if (entries_.empty()) return matches;
  const Entry& last = entries_.back();
  for (int32_t n = kMaxOrder; n >= 1 && matches.size() < limit; --n) {
    size_t examined = 0;
    for (int32_t at = last.previous[n - 1]; at >= 0 && examined < kCandidates;
         at = entries_[at].previous[n - 1], ++examined) {
      // Already found with the next longer n-gram.
      if (n < kMaxOrder && last.nodes[n] >= 0 && entries_[at].nodes[n] == last.nodes[n]) continue;
      matches.push_back({n < kMaxOrder ? n : MatchLength(at, n), at + 1});
    }
    if (n == kMaxOrder) {
      std::stable_sort(matches.begin(), matches.end(),
                       [](const Match& a, const Match& b) { return a.length > b.length; });
    }
  }
  if (matches.size() > limit) matches.resize(limit);
  return matches;
}

NgramIndex::Match NgramIndex::Longest() const {
  const std::vector<Match> matches = Matches(1);
  return matches.empty() ? Match{} : matches.front();
}

void NgramIndex::Merge(const Match& match, int64_t max_nodes, int64_t max_depth,
                       NgramDraft* draft) const {
  const int32_t period = size() - match.end;
  int32_t node = 0;
  for (int64_t depth = 0; depth < max_depth; ++depth) {
    const int32_t next = token(match.end + static_cast<int32_t>(depth % period));
    const int32_t count = static_cast<int32_t>(draft->tokens.size());
    int32_t child = node + 1;
    while (child < count && (draft->parents[child] != node || draft->tokens[child] != next))
      ++child;
    if (child == count) {
      if (count > max_nodes) return;
      draft->tokens.push_back(next);
      draft->parents.push_back(node);
      draft->match_lengths.push_back(
          static_cast<int32_t>(std::min<int64_t>(match.length + depth, kMaxMatch)));
    }
    node = child;
  }
}

NgramDraft NgramIndex::Tree(int64_t max_nodes, int64_t max_depth) const {
  CheckLimit("max_nodes", max_nodes);
  CheckLimit("max_depth", max_depth);
  if (entries_.empty()) Throw(ErrorKind::kValue, "an empty text has no last token to draft from");
  NgramDraft draft{{entries_.back().token}, {-1}, {0}};
  for (const Match& match : Matches(kCandidates)) Merge(match, max_nodes, max_depth, &draft);
  return draft;
}

NgramDraft NgramIndex::Chain(int64_t max_length) const {
  CheckLimit("max_length", max_length);
  if (entries_.empty()) Throw(ErrorKind::kValue, "an empty text has no last token to draft from");
  NgramDraft draft{{entries_.back().token}, {-1}, {0}};
  const Match longest = Longest();
  if (longest.length > 0) Merge(longest, max_length, max_length, &draft);
  return draft;
}

}  // namespace kvctl
