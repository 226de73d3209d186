#include <random>

#include "check.h"
#include "core/tree/ngram_index.h"

using kvctl::NgramDraft;
using kvctl::NgramIndex;

namespace {

using Text = std::vector<int32_t>;

NgramIndex Index(const Text& text) {
  NgramIndex index;
  index.Append(text.data(), text.size());
  return index;
}

// The contract of the index, as a plain scan.
NgramIndex::Match LongestByScan(const Text& text) {
  NgramIndex::Match best;
  const int32_t size = static_cast<int32_t>(text.size());
  for (int32_t end = size - 1; end >= 1; --end) {
    int32_t length = 0;
    while (length < NgramIndex::kMaxMatch && length < end &&
           text[end - 1 - length] == text[size - 1 - length]) {
      ++length;
    }
    if (length > best.length) best = {length, end};
  }
  return best;
}

void ExpectSame(const NgramDraft& draft, const Text& tokens, const Text& parents) {
  EXPECT(draft.tokens == tokens);
  EXPECT(draft.parents == parents);
}

}  // namespace

TEST(NgramFindsTheLongestAndOfEqualsTheLatestOccurrence) {
  EXPECT_EQ(Index({}).Longest().length, 0);
  EXPECT_EQ(Index({1, 2, 3}).Longest().length, 0);
  const NgramIndex::Match latest = Index({1, 2, 7, 1, 2, 8, 1, 2}).Longest();
  EXPECT_EQ(latest.length, 2);
  EXPECT_EQ(latest.end, 5);
  const NgramIndex::Match longest = Index({9, 1, 2, 7, 1, 2, 8, 9, 1, 2}).Longest();
  EXPECT_EQ(longest.length, 3);
  EXPECT_EQ(longest.end, 3);
}

TEST(NgramAgreesWithAScanOnRandomTexts) {
  std::mt19937 random(1);
  for (int32_t vocabulary : {1, 2, 3, 10}) {
    Text text;
    NgramIndex index;
    for (int32_t i = 0; i < 60; ++i) {  // few enough that nearly every occurrence is examined
      text.push_back(static_cast<int32_t>(random() % vocabulary));
      index.Append(&text.back(), 1);
      const NgramIndex::Match expected = LongestByScan(text);
      const NgramIndex::Match found = index.Longest();
      // The index examines the latest 16 occurrences of the last four tokens and may miss an older
      // one.
      if (expected.length <= NgramIndex::kMaxOrder || vocabulary >= 3) {
        EXPECT_EQ(found.length, expected.length);
        EXPECT_EQ(found.end, expected.end);
      } else {
        EXPECT(found.length >= NgramIndex::kMaxOrder && found.length <= expected.length);
      }
    }
  }
}

TEST(NgramChainCopiesAndRunsOnIntoItself) {
  ExpectSame(Index({1, 2, 3, 4, 1, 2}).Chain(2), {2, 3, 4}, {-1, 0, 1});
  // "3 4 1 2" reaches the end of the text and continues with the drafted tokens.
  ExpectSame(Index({1, 2, 3, 4, 1, 2}).Chain(6), {2, 3, 4, 1, 2, 3, 4}, {-1, 0, 1, 2, 3, 4, 5});
  ExpectSame(Index({5, 5}).Chain(3), {5, 5, 5, 5}, {-1, 0, 1, 2});
  ExpectSame(Index({1, 2, 3}).Chain(4), {3}, {-1});
  ExpectSame(Index({1, 1}).Chain(0), {1}, {-1});
}

TEST(NgramChainReportsMatchLengths) {
  EXPECT((Index({1, 2, 3, 4, 1, 2}).Chain(3).match_lengths == Text{0, 2, 3, 4}));
  const Text same(200, 7);
  const NgramDraft draft = Index(same).Chain(3);
  EXPECT((draft.match_lengths ==
          Text{0, NgramIndex::kMaxMatch, NgramIndex::kMaxMatch, NgramIndex::kMaxMatch}));
}

TEST(NgramTreeMergesContinuations) {
  //   after "1 2":  7 7   8 9   8 5     latest first: 8 -> (5, 9), then 7
  const NgramIndex index = Index({1, 2, 7, 7, 1, 2, 8, 9, 1, 2, 8, 5, 1, 2});
  const NgramDraft draft = index.Tree(16, 2);
  ExpectSame(draft, {2, 8, 5, 9, 7, 7}, {-1, 0, 1, 1, 0, 4});
  EXPECT((draft.match_lengths == Text{0, 2, 3, 3, 2, 3}));
  ExpectSame(index.Tree(3, 2), {2, 8, 5, 9}, {-1, 0, 1, 1});
  ExpectSame(index.Tree(16, 1), {2, 8, 7}, {-1, 0, 0});
  ExpectSame(index.Tree(0, 3), {2}, {-1});
}

TEST(NgramTreeOfOneBranchIsTheChain) {
  std::mt19937 random(2);
  Text text;
  for (int32_t i = 0; i < 300; ++i) text.push_back(static_cast<int32_t>(random() % 4));
  const NgramIndex index = Index(text);
  const NgramDraft chain = index.Chain(5), tree = index.Tree(64, 5);
  EXPECT(tree.tokens.size() > 6);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(tree.tokens[i], chain.tokens[i]);
    EXPECT_EQ(tree.parents[i], chain.parents[i]);
    EXPECT_EQ(tree.match_lengths[i], chain.match_lengths[i]);
  }
  for (size_t i = 1; i < tree.tokens.size(); ++i) {
    EXPECT(tree.parents[i] < static_cast<int32_t>(i));
    for (size_t j = 1; j < i; ++j) {  // siblings are different tokens
      EXPECT(tree.parents[i] != tree.parents[j] || tree.tokens[i] != tree.tokens[j]);
    }
  }
}

TEST(NgramTruncateForgetsLaterTokens) {
  std::mt19937 random(3);
  Text text;
  for (int32_t i = 0; i < 400; ++i) text.push_back(static_cast<int32_t>(random() % 3));
  NgramIndex index = Index(text);
  for (size_t size : {399, 250, 3, 1, 0}) {
    index.Truncate(static_cast<int64_t>(size));
    const NgramIndex fresh = Index(Text(text.begin(), text.begin() + size));
    EXPECT_EQ(index.size(), static_cast<int32_t>(size));
    EXPECT_EQ(index.Longest().length, fresh.Longest().length);
    EXPECT_EQ(index.Longest().end, fresh.Longest().end);
  }
  index.Append(text.data(), text.size());
  EXPECT(index.Tree(32, 4).tokens == Index(text).Tree(32, 4).tokens);
  EXPECT_ERROR(index.Truncate(401), kValue, "of 400 tokens to 401");
  EXPECT_ERROR(index.Truncate(-1), kValue, "to -1");
  EXPECT_EQ(index.size(), 400);
}

TEST(NgramRefusesInvalidArguments) {
  EXPECT_ERROR(Index({}).Chain(3), kValue, "empty text");
  EXPECT_ERROR(Index({}).Tree(3, 3), kValue, "empty text");
  EXPECT_ERROR(Index({1}).Chain(-1), kValue, "max_length must not be negative, got -1");
  EXPECT_ERROR(Index({1}).Tree(-2, 1), kValue, "max_nodes");
  EXPECT_ERROR(Index({1}).Tree(1, -2), kValue, "max_depth");
}
