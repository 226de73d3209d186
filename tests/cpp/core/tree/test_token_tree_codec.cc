// Encoded trees: what was written is read again, and nothing else is.
#include <vector>

#include "check.h"
#include "core/tree/token_tree_codec.h"

namespace {

std::vector<int32_t> Encode(const std::vector<kvctl::TokenTree>& trees) {
  std::vector<int32_t> code;
  for (const kvctl::TokenTree& tree : trees) {
    const std::vector<int32_t> one = tree.Encode();
    code.insert(code.end(), one.begin(), one.end());
  }
  return code;
}

}  // namespace

TEST(TreesOfABatchStandOneAfterAnother) {
  const std::vector<kvctl::TokenTree> trees = {kvctl::TokenTree({9, 5, 5}, {-1, 0, 0}, {0, 1, 1}),
                                               kvctl::TokenTree::Chain({4, 2})};
  const std::vector<int32_t> code = Encode(trees);
  const std::vector<kvctl::TreeView> views = kvctl::SplitTrees(code.data(), code.size());
  const std::vector<kvctl::TokenTree> decoded = kvctl::DecodeTrees(code.data(), code.size());
  EXPECT_EQ(views.size(), 2u);
  EXPECT_EQ(decoded.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(views[i].size, trees[i].size());
    EXPECT_EQ(views[i].num_rows, trees[i].num_rows());
    EXPECT_EQ(views[i].tokens[1], trees[i].tokens()[1]);
    EXPECT(decoded[i].tokens() == trees[i].tokens());
    EXPECT(decoded[i].parents() == trees[i].parents());
    EXPECT(decoded[i].rows() == trees[i].rows());
  }
  EXPECT(kvctl::SplitTrees(nullptr, 0).empty());
}

TEST(BuffersThatHoldNoTreesAreRefused) {
  const auto split = [](std::vector<int32_t> code) {
    return kvctl::SplitTrees(code.data(), code.size());
  };
  EXPECT_ERROR(split({1}), kValue, "tree 0, at entry 0 of 1, is incomplete");
  EXPECT_ERROR(split({0, 1}), kValue, "is incomplete");
  EXPECT_ERROR(split({1, 0, 5, -1, 0}), kValue, "is incomplete");
  EXPECT_ERROR(split({2, 1, 5, -1, 0}), kValue, "is incomplete");
  EXPECT_ERROR(split({1 << 30, 1, 5, -1, 0}), kValue, "is incomplete");
  EXPECT_ERROR(split({1, 1, 5, -1, 0, 7}), kValue, "tree 1, at entry 5 of 6, is incomplete");
  const std::vector<int32_t> rows = {1, 2, 5, -1, 0};
  EXPECT_ERROR(kvctl::DecodeTrees(rows.data(), rows.size()), kValue, "has 1 rows, not 2");
  const std::vector<int32_t> two =
      Encode({kvctl::TokenTree::Chain({1}), kvctl::TokenTree::Chain({2})});
  EXPECT_ERROR(kvctl::TokenTree::Decode(two.data(), two.size()), kValue, "one encoded token tree");
}
