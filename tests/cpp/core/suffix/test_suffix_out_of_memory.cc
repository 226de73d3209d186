// Fails each allocation of an addition in turn: the store answers as before, and takes the text
// when it is added again.
#include <algorithm>
#include <memory>
#include <new>
#include <random>

#include "check.h"
#include "core/failing_allocations.h"
#include "core/suffix/suffix_store.h"

using kvctl::allocations_left;
using kvctl::SuffixDraft;
using kvctl::SuffixStore;
using kvctl::TokenSpan;

namespace {

using Text = std::vector<int32_t>;

Text RandomText(std::mt19937* random, size_t size) {
  Text text(size);
  for (int32_t& token : text) token = static_cast<int32_t>((*random)() % 4);
  return text;
}

std::unique_ptr<SuffixStore> StoreOf(int64_t capacity, const std::vector<Text>& texts) {
  auto store = std::make_unique<SuffixStore>(capacity);
  for (const Text& text : texts) store->Add({{text.data(), text.size()}});
  return store;
}

void ExpectSameAnswers(const SuffixStore& a, const SuffixStore& b) {
  EXPECT_EQ(a.num_texts(), b.num_texts());
  EXPECT_EQ(a.num_tokens(), b.num_tokens());
  std::mt19937 random(7);
  for (int32_t i = 0; i < 30; ++i) {
    const Text context = RandomText(&random, 20);
    const SuffixDraft one = a.Tree({context.data(), 20}, 12, 6);
    const SuffixDraft other = b.Tree({context.data(), 20}, 12, 6);
    EXPECT(one.tokens == other.tokens && one.shares == other.shares);
    EXPECT_EQ(one.match_length, other.match_length);
  }
}

// Adds texts with ever more allocations until they suffice; returns how often they did not.
int32_t AddWithFailures(int64_t capacity, const std::vector<Text>& before,
                        const std::vector<TokenSpan>& added) {
  for (int32_t failures = 0;; ++failures) {
    auto store = StoreOf(capacity, before);
    allocations_left = failures;
    bool failed = false;
    try {
      store->Add(added);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    allocations_left = -1;
    if (!failed) return failures;
    // The oldest texts may be gone, and of those added the first may be there.
    const auto kept = static_cast<size_t>(store->num_texts());
    EXPECT(kept <= before.size());
    ExpectSameAnswers(
        *store, *StoreOf(capacity, {before.end() - static_cast<ptrdiff_t>(kept), before.end()}));
    store->Add(added);
    auto expected = StoreOf(capacity, before);
    expected->Add(added);
    if (capacity > 100000) ExpectSameAnswers(*store, *expected);
  }
}

}  // namespace

TEST(SuffixOutOfMemoryWhileATextIsAdded) {
  std::mt19937 random(1);
  std::vector<Text> before;
  for (int32_t i = 0; i < 12; ++i) before.push_back(RandomText(&random, 150));
  const Text text = RandomText(&random, 700);  // splits blocks
  EXPECT(AddWithFailures(1 << 20, before, {{text.data(), text.size()}}) >= 4);
  EXPECT(AddWithFailures(2000, before, {{text.data(), text.size()}}) >= 1);  // others must go
}

TEST(SuffixOutOfMemoryWhileManyAreAdded) {
  std::mt19937 random(2);
  std::vector<Text> before{RandomText(&random, 300), RandomText(&random, 50)}, texts;
  std::vector<TokenSpan> added;
  for (int32_t i = 0; i < 6; ++i) texts.push_back(RandomText(&random, 900));
  for (const Text& text : texts) added.push_back({text.data(), text.size()});
  EXPECT(AddWithFailures(1 << 20, before, added) >= 10);
}
