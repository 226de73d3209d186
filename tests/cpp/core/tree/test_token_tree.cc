#include <vector>

#include "check.h"
#include "kvctl/token_tree.h"

using kvctl::TokenTree;
using Ints = std::vector<int32_t>;

TEST(TreeHasDepthsAndRows) {
  const TokenTree tree({9, 5, 7, 5}, {-1, 0, 0, 1});
  EXPECT(tree.depths() == (Ints{0, 1, 1, 2}));
  EXPECT(tree.rows() == (Ints{0, 1, 2, 3}));
  EXPECT_EQ(tree.num_rows(), 4);
  EXPECT(!tree.is_chain());
  EXPECT(TokenTree::Chain({4, 4, 4}).is_chain());
}

TEST(TreeRefusesMalformedArrays) {
  EXPECT_ERROR(TokenTree({}, {}), kValue, "at least its root");
  EXPECT_ERROR(TokenTree({1, 2}, {-1}), kValue, "2 tokens needs 2 parents, got 1");
  EXPECT_ERROR(TokenTree({1}, {0}), kValue, "node 0 is the root");
  EXPECT_ERROR(TokenTree({1, 2}, {-1, -1}), kValue, "parent of node 1");
  EXPECT_ERROR(TokenTree({1, 2, 3}, {-1, 2, 0}), kValue, "in [0, 1), got 2");
  EXPECT_ERROR(TokenTree({1, 2}, {-1, 1}), kValue, "earlier node");
  EXPECT_ERROR(TokenTree({1, -2}, {-1, 0}), kValue, "got -2");
  EXPECT_ERROR(TokenTree({1, 2}, {-1, 0}, {0}), kValue, "2 rows, got 1");
  EXPECT_ERROR(TokenTree({1, 2}, {-1, 0}, {0, -1}), kValue, "row of node 1");
  EXPECT_ERROR(TokenTree({1, 2}, {-1, 0}, {1, 0}), kValue, "parent's row must come before");
  EXPECT_ERROR(TokenTree({1, 2}, {-1, 0}, {0, 1 << 30}), kValue, "at most");
}

TEST(OnlyTheSameTokenBehindTheSamePathSharesARow) {
  const TokenTree twins({9, 5, 5, 6, 6}, {-1, 0, 0, 1, 2}, {0, 1, 1, 2, 2});
  EXPECT_EQ(twins.num_rows(), 3);
  EXPECT(twins.RowParents() == (Ints{-1, 0, 1}));
  EXPECT_ERROR(TokenTree({9, 5, 6}, {-1, 0, 0}, {0, 1, 1}), kValue, "nodes 1 and 2 share row 1");
  EXPECT_ERROR(TokenTree({9, 5, 6, 5}, {-1, 0, 0, 2}, {0, 1, 2, 1}), kValue, "row");
  EXPECT_ERROR(TokenTree({9, 5, 6, 7, 7}, {-1, 0, 0, 1, 2}, {0, 1, 2, 3, 3}), kValue,
               "nodes 3 and 4 share row 3");
}

TEST(RowsOfNoNodeHaveNoParent) {
  const TokenTree gap({9, 5}, {-1, 0}, {0, 2});
  EXPECT_EQ(gap.num_rows(), 3);
  EXPECT_ERROR(gap.RowParents(), kValue, "row 1 belongs to no node");
}

TEST(PruneTakesTheBestReachableNodes) {
  //      0
  //    1   2      node 4 has the best score, but its parent must be taken first
  //   3     4
  const TokenTree tree({0, 1, 2, 3, 4}, {-1, 0, 0, 1, 2});
  const auto pruned = tree.Prune({0, 0.5, 0.4, 0.3, 0.9}, 3);
  EXPECT(pruned.nodes == (Ints{0, 1, 2}));
  const auto path = tree.Prune({0, 0.3, 0.4, 0.3, 0.9}, 3);
  EXPECT(path.nodes == (Ints{0, 2, 4}));
  EXPECT(path.tree.tokens() == (Ints{0, 2, 4}));
  EXPECT(path.tree.parents() == (Ints{-1, 0, 1}));
  EXPECT(path.tree.rows() == (Ints{0, 1, 2}));
  EXPECT(tree.Prune({0, 1, 1, 1, 1}, 2).nodes == (Ints{0, 1}));  // ties: the lower index
  EXPECT_ERROR(tree.Prune({0, 1}, 2), kValue, "5 scores, got 2");
  EXPECT_ERROR(tree.Prune({0, 1, 1, 1, 1}, 0), kValue, "between 1 and");
  EXPECT_ERROR(tree.Prune({0, 1, 1, 1, 1}, 6), kValue, "got 6");
}

TEST(PruneKeepsSharedRowsShared) {
  const TokenTree twins({9, 3, 5, 5, 6}, {-1, 0, 0, 0, 3}, {0, 1, 2, 2, 3});
  const auto pruned = twins.Prune({0, 0.1, 0.9, 0.9, 0.8}, 4);
  EXPECT(pruned.nodes == (Ints{0, 2, 3, 4}));
  EXPECT(pruned.tree.rows() == (Ints{0, 1, 1, 2}));
}

TEST(TreeDrawsItself) {
  const TokenTree tree({9, 5, 7, 5, 8}, {-1, 0, 0, 1, 1});
  EXPECT_EQ(tree.ToString(), std::string("0:9\n|- 1:5\n|  |- 3:5\n|  `- 4:8\n`- 2:7"));
}
