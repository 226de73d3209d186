#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "check.h"
#include "core/suffix/suffix_store.h"

using kvctl::SuffixDraft;
using kvctl::SuffixStore;
using kvctl::TokenSpan;

namespace {

using Text = std::vector<int32_t>;

TokenSpan Span(const Text& text) { return {text.data(), text.size()}; }

void Add(SuffixStore* store, const Text& text) { store->Add({Span(text)}); }

Text RandomText(std::mt19937* random, size_t most, uint32_t vocabulary) {
  Text text(1 + (*random)() % most);
  for (int32_t& token : text) token = static_cast<int32_t>((*random)() % vocabulary);
  return text;
}

// The contract, as a plain scan.
int32_t LongestByScan(const std::vector<Text>& texts, const Text& context) {
  int32_t best = 0;
  for (const Text& text : texts) {
    for (size_t end = 1; end < text.size(); ++end) {
      int32_t length = 0;
      while (length < SuffixStore::kMaxMatch && length < static_cast<int32_t>(end) &&
             length < static_cast<int32_t>(context.size()) &&
             text[end - 1 - length] == context[context.size() - 1 - length]) {
        ++length;
      }
      best = std::max(best, length);
    }
  }
  return best;
}

}  // namespace

TEST(SuffixFindsTheLongestMatchOfAllTexts) {
  std::mt19937 random(1);
  for (uint32_t vocabulary : {2u, 4u, 30u}) {
    SuffixStore store(1 << 20);
    std::vector<Text> texts;
    for (int32_t i = 0; i < 60; ++i) {
      texts.push_back(RandomText(&random, 50, vocabulary));
      Add(&store, texts.back());
      for (int32_t j = 0; j < 5; ++j) {
        const Text context = RandomText(&random, 80, vocabulary);
        EXPECT_EQ(store.Longest(Span(context)), LongestByScan(texts, context));
      }
    }
    EXPECT_EQ(store.num_texts(), 60);
  }
}

TEST(SuffixTreeCountsContinuations) {
  SuffixStore store(1000);
  for (const Text& text : {Text{1, 2, 3, 4}, {1, 2, 3, 5}, {1, 2, 6}, {9, 2, 7}, {1, 2}}) {
    Add(&store, text);
  }
  const Text context{0, 1, 2};
  const SuffixDraft draft = store.Tree(Span(context), 10, 10);
  EXPECT_EQ(draft.match_length, 2);
  EXPECT((draft.tokens == Text{2, 3, 6, 5, 4}));  // of equals, what the newer text has first
  EXPECT((draft.parents == Text{-1, 0, 0, 1, 1}));
  EXPECT(std::abs(draft.shares[1] - 2.0 / 3) < 1e-12);
  EXPECT(std::abs(draft.shares[4] - 1.0 / 3) < 1e-12);
  EXPECT((store.Tree(Span(context), 2, 10).tokens == Text{2, 3, 6}));
  EXPECT((store.Tree(Span(context), 10, 1).tokens == Text{2, 3, 6}));
  EXPECT((store.Tree(Span(context), 0, 10).tokens == Text{2}));
  const Text unknown{1, 2, 8};
  EXPECT((store.Tree(Span(unknown), 10, 10).tokens == Text{8}));
}

TEST(SuffixLosesTheOldestTexts) {
  std::mt19937 random(2);
  for (int64_t capacity : {2, 3, 17, 200, 1000}) {
    SuffixStore store(capacity);
    std::vector<Text> texts;
    for (int32_t i = 0; i < 400; ++i) {
      texts.push_back(RandomText(&random, 90, 3));
      Add(&store, texts.back());
      const auto kept = static_cast<size_t>(store.num_texts());
      EXPECT(kept >= 1 && kept <= texts.size());
      EXPECT(store.num_tokens() + store.num_texts() <= capacity);
      std::vector<Text> present(texts.end() - static_cast<ptrdiff_t>(kept), texts.end());
      // A text longer than the store has lost its beginning.
      for (Text& text : present) {
        const auto most = static_cast<size_t>(capacity) - 1;
        if (text.size() > most) text.erase(text.begin(), text.end() - static_cast<ptrdiff_t>(most));
      }
      int64_t tokens = 0;
      for (const Text& text : present) tokens += static_cast<int64_t>(text.size());
      EXPECT_EQ(store.num_tokens(), tokens);
      const Text context = RandomText(&random, 30, 3);
      EXPECT_EQ(store.Longest(Span(context)), LongestByScan(present, context));
    }
  }
}

TEST(SuffixManyTextsAtOnceAreTheSameStore) {
  std::mt19937 random(3);
  for (int64_t capacity : {3000, 100000}) {  // also where a batch pushes its own texts out
    SuffixStore one(capacity), many(capacity);
    for (int32_t round = 0; round < 4; ++round) {
      std::vector<Text> texts;
      std::vector<TokenSpan> spans;
      for (int32_t i = 0; i < 200; ++i) texts.push_back(RandomText(&random, 100, 4));
      for (const Text& text : texts) {
        Add(&one, text);
        spans.push_back(Span(text));
      }
      many.Add(spans);
      EXPECT_EQ(one.num_texts(), many.num_texts());
      for (int32_t i = 0; i < 100; ++i) {
        const Text context = RandomText(&random, 40, 4);
        const SuffixDraft a = one.Tree(Span(context), 20, 8), b = many.Tree(Span(context), 20, 8);
        EXPECT_EQ(a.match_length, b.match_length);
        EXPECT(a.tokens == b.tokens && a.parents == b.parents && a.shares == b.shares);
      }
    }
  }
}

TEST(SuffixRefusesInvalidArguments) {
  EXPECT_ERROR(SuffixStore(1), kValue, "between 2 and 2147483648 tokens, got 1");
  SuffixStore store(100);
  EXPECT_ERROR(Add(&store, {1, -2}), kValue, "must not be negative, got -2 at 1");
  Add(&store, {});
  EXPECT_EQ(store.num_texts(), 0);
  const Text context{1};
  EXPECT_ERROR(store.Tree({nullptr, 0}, 1, 1), kValue, "empty context");
  EXPECT_ERROR(store.Tree(Span(context), -1, 1), kValue, "max_nodes must not be negative, got -1");
  EXPECT_ERROR(store.Tree(Span(context), 1, -1), kValue, "max_depth must not be negative, got -1");
  EXPECT_EQ(store.Longest({nullptr, 0}), 0);
}

TEST(SuffixThreadsLookUpWhileTextsComeAndGo) {
  SuffixStore store(5000);
  std::atomic<bool> done{false};
  std::vector<std::thread> readers;
  for (uint32_t seed = 0; seed < 3; ++seed) {
    readers.emplace_back([&, seed] {
      std::mt19937 random(seed);
      while (!done) {
        const Text context = RandomText(&random, 40, 4);
        const SuffixDraft draft = store.Tree(Span(context), 16, 8);
        EXPECT(draft.tokens.size() == draft.parents.size() && draft.tokens[0] == context.back());
      }
    });
  }
  std::mt19937 random(9);
  for (int32_t i = 0; i < 500; ++i) Add(&store, RandomText(&random, 200, 4));
  done = true;
  for (std::thread& reader : readers) reader.join();
}
