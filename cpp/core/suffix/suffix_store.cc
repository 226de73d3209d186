#include "core/suffix/suffix_store.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <utility>

#include "core/suffix/continuation_tree.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

// From so many tokens on, texts that are at least this part of all are sorted with them anew.
constexpr size_t kBulkTokens = 4096;
constexpr size_t kBulkPart = 8;

void CheckTokens(const TokenSpan& text) {
  for (size_t i = 0; i < text.size; ++i) {
    if (text.data[i] < 0) {
      Throw(ErrorKind::kValue, "tokens must not be negative, got ", text.data[i], " at ", i);
    }
  }
}

}  // namespace

/*! \brief The last tokens of a caller's context, with the end before them that Compare needs. */
class SuffixStore::Context {
 public:
  explicit Context(const TokenSpan& tokens) {
    const size_t count = std::min<size_t>(tokens.size, kMaxMatch);
    buffer_[kMaxMatch - count] = TextRing::kEnd;
    std::copy_n(tokens.data + tokens.size - count, count, buffer_.end() - count);
  }
  const int32_t* last() const { return buffer_.data() + kMaxMatch; }

 private:
  std::array<int32_t, kMaxMatch + 1> buffer_;
};

SuffixStore::SuffixStore(int64_t capacity) : texts_(capacity) {}

int64_t SuffixStore::num_tokens() const {
  const std::shared_lock lock(mutex_);
  return texts_.num_tokens();
}

int64_t SuffixStore::num_texts() const {
  const std::shared_lock lock(mutex_);
  return static_cast<int64_t>(texts_.texts().size());
}

int64_t SuffixStore::bytes() const {
  const std::shared_lock lock(mutex_);
  return static_cast<int64_t>(sizeof(*this) + texts_.bytes() + order_.bytes());
}

void SuffixStore::Add(const std::vector<TokenSpan>& texts) {
  const auto most = static_cast<size_t>(capacity()) - 1;
  std::vector<TokenSpan> added;
  size_t total = 0;
  for (const TokenSpan& text : texts) {
    CheckTokens(text);
    if (text.size == 0) continue;
    const size_t size = std::min(text.size, most);
    added.push_back({text.data + text.size - size, size});
    total += size;
  }
  const std::unique_lock lock(mutex_);
  if (total >= kBulkTokens && total * kBulkPart >= order_.size()) {
    AddManyLocked(added);
  } else {
    for (const TokenSpan& text : added) AddLocked(text);
  }
}

// Removes the oldest texts until a text fits; of the newest ones, `unindexed` are not in the index.
void SuffixStore::MakeRoomFor(uint32_t size, size_t unindexed) {
  while (!texts_.Fits(size)) {
    const TextRing::Text& oldest = texts_.texts().front();
    if (texts_.texts().size() > unindexed) {
      for (uint32_t i = 0; i + 1 < oldest.size; ++i) {
        order_.Erase(texts_.slots(), oldest.begin + i);
      }
    }
    texts_.RemoveOldest();
  }
}

void SuffixStore::AddLocked(const TokenSpan& text) {
  const auto size = static_cast<uint32_t>(text.size);
  MakeRoomFor(size, 0);
  const uint32_t begin = texts_.Add(text.data, size).begin;
  uint32_t inserted = 0;
  try {
    for (; inserted + 1 < size; ++inserted) order_.Insert(texts_.slots(), begin + inserted);
  } catch (...) {
    while (inserted > 0) order_.Erase(texts_.slots(), begin + --inserted);
    texts_.RemoveNewest();
    throw;
  }
}

void SuffixStore::AddManyLocked(const std::vector<TokenSpan>& texts) {
  size_t unindexed = 0;
  try {
    for (const TokenSpan& text : texts) {
      const auto size = static_cast<uint32_t>(text.size);
      MakeRoomFor(size, unindexed);
      unindexed = std::min(unindexed, texts_.texts().size());
      texts_.Add(text.data, size);
      ++unindexed;
    }
    std::vector<uint32_t> members;
    members.reserve(static_cast<size_t>(texts_.num_tokens()));
    for (const TextRing::Text& text : texts_.texts()) {
      for (uint32_t i = 0; i + 1 < text.size; ++i) members.push_back(text.begin + i);
    }
    order_.Assign(texts_.slots(), std::move(members));
  } catch (...) {
    for (; unindexed > 0; --unindexed) texts_.RemoveNewest();
    throw;
  }
}

SuffixStore::Found SuffixStore::Find(const Context& context) const {
  Found found;
  found.place = order_.UpperBound(texts_.slots(), context.last());
  ContextOrder::Place place = found.place;
  uint32_t slot;
  const auto shared = [&] {
    return ContextOrder::Compare(texts_.slots() + slot, context.last()).shared;
  };
  if (order_.Previous(&place, &slot)) found.match_length = shared();
  place = found.place;
  if (order_.Next(&place, &slot)) found.match_length = std::max(found.match_length, shared());
  return found;
}

int32_t SuffixStore::Longest(const TokenSpan& context) const {
  const Context last(context);
  const std::shared_lock lock(mutex_);
  return context.size == 0 ? 0 : Find(last).match_length;
}

// Slots whose contexts share the match, around the place of the context: half of the most on each
// side, or more where the other has fewer.
std::vector<uint32_t> SuffixStore::Occurrences(const Context& context, const Found& found) const {
  constexpr size_t kAtOnce = 8;
  std::vector<uint32_t> slots;
  slots.reserve(kOccurrences);
  // Adds up to `most` from one side, nearest first.
  const auto take = [&](auto&& step, size_t most) {
    std::array<uint32_t, kAtOnce> next;
    for (bool more = true; more && most > 0;) {
      size_t count = 0;
      while (count < std::min(kAtOnce, most) && step(&next[count])) {
        // Most of the time goes into waiting for memory: ask for several places at once.
        __builtin_prefetch(texts_.slots() + next[count++]);
      }
      more = count == kAtOnce;
      for (size_t i = 0; i < count; ++i, --most) {
        const int32_t* last = texts_.slots() + next[i];
        if (ContextOrder::Compare(last, context.last()).shared < found.match_length) return;
        slots.push_back(next[i]);
      }
    }
  };
  ContextOrder::Place before = found.place, behind = found.place;
  const auto back = [&](uint32_t* slot) { return order_.Previous(&before, slot); };
  const auto forth = [&](uint32_t* slot) { return order_.Next(&behind, slot); };
  take(back, kOccurrences / 2);
  take(forth, kOccurrences - slots.size());
  if (slots.size() < kOccurrences) take(back, kOccurrences - slots.size());
  return slots;
}

SuffixDraft SuffixStore::Tree(const TokenSpan& context, int64_t max_nodes,
                              int64_t max_depth) const {
  if (max_nodes < 0) Throw(ErrorKind::kValue, "max_nodes must not be negative, got ", max_nodes);
  if (max_depth < 0) Throw(ErrorKind::kValue, "max_depth must not be negative, got ", max_depth);
  if (context.size == 0) {
    Throw(ErrorKind::kValue, "an empty context has no last token to draft from");
  }
  const Context last(context);
  SuffixDraft draft{{*last.last()}, {-1}, {1.0}, 0};
  const std::shared_lock lock(mutex_);
  const Found found = Find(last);
  if (found.match_length == 0) return draft;
  draft.match_length = found.match_length;
  std::vector<Continuation> continuations;
  continuations.reserve(kOccurrences);
  for (uint32_t slot : Occurrences(last, found)) {
    continuations.push_back({texts_.slots() + slot + 1, texts_.Age(slot)});
  }
  GrowContinuations(std::move(continuations), max_nodes, max_depth, &draft);
  return draft;
}

}  // namespace kvctl
