#include "core/tree/token_tree_codec.h"

#include <algorithm>

#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr size_t kHeader = 2;  // size, num_rows
constexpr size_t kArrays = 3;  // tokens, parents, rows

}  // namespace

TreeView ViewOf(const TokenTree& tree) {
  return {tree.size(), tree.num_rows(), tree.tokens().data(), tree.parents().data(),
          tree.rows().data()};
}

size_t EncodedSize(const TokenTree& tree) {
  return kHeader + kArrays * static_cast<size_t>(tree.size());
}

int32_t* EncodeTree(const TokenTree& tree, int32_t* out) {
  *out++ = tree.size();
  *out++ = tree.num_rows();
  for (const auto* values : {&tree.tokens(), &tree.parents(), &tree.rows()}) {
    out = std::copy(values->begin(), values->end(), out);
  }
  return out;
}

std::vector<TreeView> SplitTrees(const int32_t* data, size_t size) {
  std::vector<TreeView> trees;
  for (size_t at = 0; at < size;) {
    const bool has_header = size - at >= kHeader;
    const int32_t n = has_header ? data[at] : 0;
    if (n < 1 || data[at + 1] < 1 || (size - at - kHeader) / kArrays < static_cast<size_t>(n)) {
      Throw(ErrorKind::kValue, "this buffer does not hold encoded token trees: tree ", trees.size(),
            ", at entry ", at, " of ", size, ", is incomplete");
    }
    const int32_t* tokens = data + at + kHeader;
    trees.push_back({n, data[at + 1], tokens, tokens + n, tokens + 2 * static_cast<size_t>(n)});
    at += kHeader + kArrays * static_cast<size_t>(n);
  }
  return trees;
}

std::vector<TokenTree> DecodeTrees(const int32_t* data, size_t size) {
  std::vector<TokenTree> trees;
  for (const TreeView& view : SplitTrees(data, size)) {
    const auto copy = [&](const int32_t* values) {
      return std::vector<int32_t>(values, values + view.size);
    };
    trees.emplace_back(copy(view.tokens), copy(view.parents), copy(view.rows));
    if (trees.back().num_rows() != view.num_rows) {
      Throw(ErrorKind::kValue, "this buffer does not hold encoded token trees: tree ",
            trees.size() - 1, " has ", trees.back().num_rows(), " rows, not ", view.num_rows);
    }
  }
  return trees;
}

std::vector<int32_t> TokenTree::Encode() const {
  std::vector<int32_t> code(EncodedSize(*this));
  EncodeTree(*this, code.data());
  return code;
}

TokenTree TokenTree::Decode(const int32_t* data, size_t size) {
  std::vector<TokenTree> trees = DecodeTrees(data, size);
  if (trees.size() != 1) {
    Throw(ErrorKind::kValue, "this buffer must hold one encoded token tree, got ", trees.size());
  }
  return std::move(trees[0]);
}

}  // namespace kvctl
