#include "kvctl/token_tree.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>
#include <utility>

#include "kvctl/error.h"

namespace kvctl {
namespace {

// A row holds one token behind one path, so nodes that share a row must agree in both.
void CheckRows(const std::vector<int32_t>& tokens, const std::vector<int32_t>& parents,
               const std::vector<int32_t>& rows) {
  constexpr int32_t kMaxRow = 1 << 24;
  const int32_t largest = *std::max_element(rows.begin(), rows.end());
  if (largest > kMaxRow) {
    Throw(ErrorKind::kValue, "a row of a tree can be at most ", kMaxRow, ", got ", largest);
  }
  std::vector<int32_t> first_node(largest + 1, -1);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i > 0 && rows[parents[i]] >= rows[i]) {
      Throw(ErrorKind::kValue, "node ", i, " is in row ", rows[i], ", but its parent, node ",
            parents[i], ", is in row ", rows[parents[i]],
            ": a parent's row must come before its children's");
    }
    int32_t& first = first_node[rows[i]];
    if (first < 0) {
      first = static_cast<int32_t>(i);
    } else if (tokens[i] != tokens[first] || rows[parents[i]] != rows[parents[first]]) {
      Throw(ErrorKind::kValue, "nodes ", first, " and ", i, " share row ", rows[i],
            " but are not the same token behind the same path");
    }
  }
}

}  // namespace

TokenTree::TokenTree(std::vector<int32_t> tokens, std::vector<int32_t> parents,
                     std::vector<int32_t> rows)
    : tokens_(std::move(tokens)), parents_(std::move(parents)), rows_(std::move(rows)) {
  const size_t n = tokens_.size();
  if (n == 0) Throw(ErrorKind::kValue, "a token tree needs at least its root");
  if (n > static_cast<size_t>(std::numeric_limits<int32_t>::max() / 2)) {
    Throw(ErrorKind::kValue, "a token tree of ", n, " nodes is too large");
  }
  if (parents_.size() != n) {
    Throw(ErrorKind::kValue, "a tree of ", n, " tokens needs ", n, " parents, got ",
          parents_.size());
  }
  if (!rows_.empty() && rows_.size() != n) {
    Throw(ErrorKind::kValue, "a tree of ", n, " tokens needs ", n, " rows, got ", rows_.size());
  }
  const bool default_rows = rows_.empty();
  if (default_rows) rows_.resize(n);
  depths_.resize(n);
  for (size_t i = 0; i < n; ++i) {
    const int64_t parent = parents_[i];
    if (i == 0 && parent != -1) {
      Throw(ErrorKind::kValue, "node 0 is the root, so its parent must be -1, got ", parent);
    }
    if (i > 0 && (parent < 0 || parent >= static_cast<int64_t>(i))) {
      Throw(ErrorKind::kValue, "the parent of node ", i, " must be an earlier node, in [0, ", i,
            "), got ", parent);
    }
    if (tokens_[i] < 0) {
      Throw(ErrorKind::kValue, "the token of node ", i, " must be at least 0, got ", tokens_[i]);
    }
    if (default_rows) {
      rows_[i] = static_cast<int32_t>(i);
    } else if (rows_[i] < 0) {
      Throw(ErrorKind::kValue, "the row of node ", i, " must be at least 0, got ", rows_[i]);
    }
    depths_[i] = i == 0 ? 0 : depths_[parent] + 1;
  }
  if (!default_rows) CheckRows(tokens_, parents_, rows_);
  num_rows_ = *std::max_element(rows_.begin(), rows_.end()) + 1;
}

TokenTree TokenTree::Chain(std::vector<int32_t> tokens) {
  std::vector<int32_t> parents(tokens.size());
  for (size_t i = 0; i < parents.size(); ++i) parents[i] = static_cast<int32_t>(i) - 1;
  return TokenTree(std::move(tokens), std::move(parents));
}

bool TokenTree::is_chain() const {
  for (int32_t i = 1; i < size(); ++i) {
    if (parents_[i] != i - 1) return false;  // parents precede children, so a chain is in order
  }
  return true;
}

std::vector<int32_t> TokenTree::RowParents() const {
  constexpr int32_t kNoNode = -2;
  std::vector<int32_t> row_parents(num_rows_, kNoNode);
  for (int32_t i = 0; i < size(); ++i) {
    row_parents[rows_[i]] = i == 0 ? -1 : rows_[parents_[i]];
  }
  for (int32_t row = 0; row < num_rows_; ++row) {
    if (row_parents[row] == kNoNode) {
      Throw(ErrorKind::kValue, "row ", row,
            " belongs to no node of the tree, so the tree does not ",
            "define what it may see: give a mask for all ", num_rows_, " rows");
    }
  }
  return row_parents;
}

PrunedTree TokenTree::Prune(const std::vector<double>& scores, int32_t n) const {
  if (scores.size() != tokens_.size()) {
    Throw(ErrorKind::kValue, "a tree of ", size(), " nodes needs ", size(), " scores, got ",
          scores.size());
  }
  if (n < 1 || n > size()) {
    Throw(ErrorKind::kValue, "n must be between 1 and the tree's ", size(), " nodes, got ", n);
  }
  for (int32_t i = 1; i < size(); ++i) {
    if (std::isnan(scores[i])) Throw(ErrorKind::kValue, "the score of node ", i, " is NaN");
  }
  std::vector<std::vector<int32_t>> children(size());
  for (int32_t i = 1; i < size(); ++i) children[parents_[i]].push_back(i);
  const auto worse = [&](int32_t a, int32_t b) {
    return scores[a] != scores[b] ? scores[a] < scores[b] : a > b;
  };
  std::priority_queue<int32_t, std::vector<int32_t>, decltype(worse)> frontier(worse);
  std::vector<int32_t> nodes;
  for (int32_t node = 0;;) {
    nodes.push_back(node);
    if (static_cast<int32_t>(nodes.size()) == n) break;
    for (int32_t child : children[node]) frontier.push(child);
    node = frontier.top();
    frontier.pop();
  }
  std::sort(nodes.begin(), nodes.end());

  std::vector<int32_t> new_index(size(), -1);
  std::vector<int32_t> new_row(num_rows_, -1);
  for (int32_t node : nodes) new_row[rows_[node]] = 0;
  int32_t num_rows = 0;
  for (int32_t& row : new_row) {
    if (row == 0) row = num_rows++;
  }
  std::vector<int32_t> tokens, parents, rows;
  for (int32_t node : nodes) {
    new_index[node] = static_cast<int32_t>(tokens.size());
    tokens.push_back(tokens_[node]);
    parents.push_back(node == 0 ? -1 : new_index[parents_[node]]);
    rows.push_back(new_row[rows_[node]]);
  }
  return {TokenTree(std::move(tokens), std::move(parents), std::move(rows)), std::move(nodes)};
}

std::string TokenTree::ToString() const {
  std::vector<std::vector<int32_t>> children(size());
  for (int32_t i = 1; i < size(); ++i) children[parents_[i]].push_back(i);
  std::string text = "0:" + std::to_string(tokens_[0]);
  // (node, the indentation of its line); an explicit stack, since a long chain would overflow the
  // call stack.
  std::vector<std::pair<int32_t, std::string>> todo;
  const auto push_children = [&](int32_t node, const std::string& indent) {
    for (size_t c = children[node].size(); c-- > 0;) todo.emplace_back(children[node][c], indent);
  };
  push_children(0, "");
  while (!todo.empty()) {
    const auto [node, indent] = std::move(todo.back());
    todo.pop_back();
    const bool last = children[parents_[node]].back() == node;
    text += "\n" + indent + (last ? "`- " : "|- ") + std::to_string(node) + ":" +
            std::to_string(tokens_[node]);
    push_children(node, indent + (last ? "   " : "|  "));
  }
  return text;
}

}  // namespace kvctl
