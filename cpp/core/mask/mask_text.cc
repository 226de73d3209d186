// A mask as text: the expression that makes it. Long lists are abbreviated.
#include <string>

#include "core/mask/mask_node.h"

namespace kvctl {
namespace {

constexpr size_t kMaxListed = 12;

std::string List(const std::vector<int32_t>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) {
    if (i == kMaxListed) return text + ", ... " + std::to_string(values.size()) + " in all]";
    text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  }
  return text + "]";
}

std::string Size(int32_t queries, int32_t keys) {
  return std::to_string(queries) + " x " + std::to_string(keys);
}

/*! \brief An operand, in parentheses where the surrounding operator binds more tightly. */
std::string Operand(const Mask& mask, MaskKind around) {
  const MaskKind kind = mask.node().kind;
  const bool operation = kind == MaskKind::kAnd || kind == MaskKind::kOr;
  const std::string text = mask.ToString();
  return operation && kind != around ? "(" + text + ")" : text;
}

std::string Binary(const MaskNode& node, const char* sign) {
  return Operand(node.children[0], node.kind) + sign + Operand(node.children[1], node.kind);
}

std::string Choice(const MaskNode& node, const char* name) {
  std::string text = std::string(name) + "([";
  for (size_t i = 0; i < node.children.size(); ++i) {
    text += (i == 0 ? "" : ", ") + node.children[i].ToString();
  }
  return text + "], " + List(node.ints) + ")";
}

}  // namespace

std::string Mask::ToString() const {
  const MaskNode& node = *node_;
  switch (node.kind) {
    case MaskKind::kCausal:
      return "causal()";
    case MaskKind::kTree:
      return "tree(" + List(node.ints) + ")";
    case MaskKind::kDense:
      return "dense(" + Size(node.num_query_tokens, node.num_query_tokens) + ")";
    case MaskKind::kFull:
      return "full(" + Size(node.num_query_tokens, node.kv_len) + ")";
    case MaskKind::kWindow:
      return "window(" + std::to_string(node.size) +
             (node.sinks > 0 ? ", sinks=" + std::to_string(node.sinks) : "") + ")";
    case MaskKind::kPrefixLM:
      return "prefix_lm(" + std::to_string(node.size) + ")";
    case MaskKind::kDocuments:
      return "documents(" + std::to_string(node.ints.size() / 2) + " runs over " +
             std::to_string(node.kv_len) + " keys)";
    case MaskKind::kRanges:
      return "ranges(" + std::to_string(node.ints[node.num_query_tokens]) + " in " +
             std::to_string(node.num_query_tokens) + " queries)";
    case MaskKind::kAnd:
      return Binary(node, " & ");
    case MaskKind::kOr:
      return Binary(node, " | ");
    case MaskKind::kNot:
      return "~" + Operand(node.children[0], MaskKind::kNot);
    case MaskKind::kPerLayer:
      return Choice(node, "per_layer");
    case MaskKind::kPerHead:
      return Choice(node, "per_head");
  }
  return "";
}

}  // namespace kvctl
