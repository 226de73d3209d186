#include "kvctl/mask.h"

#include <algorithm>
#include <utility>

#include "core/mask/mask_builder.h"
#include "core/mask/mask_node.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

MaskNode Leaf(MaskKind kind) {
  MaskNode node;
  node.kind = kind;
  return node;
}

void CheckSize(const char* what, int32_t size, int32_t least) {
  if (size < least) Throw(ErrorKind::kValue, what, " must be at least ", least, ", got ", size);
}

Mask Combination(MaskKind kind, std::vector<Mask> children) {
  MaskNode node = Leaf(kind);
  for (const Mask& child : children) node.depth = std::max(node.depth, child.node().depth + 1);
  if (node.depth > kMaxMaskDepth) {
    Throw(ErrorKind::kValue, "a mask expression may be at most ", kMaxMaskDepth, " operators deep");
  }
  node.tree = CommonTree(children);
  node.children = std::move(children);
  return MaskNode::Make(std::move(node));
}

Mask Choice(MaskKind kind, const char* what, std::vector<Mask> masks, std::vector<int32_t> choice) {
  const auto count = static_cast<int32_t>(masks.size());
  if (count == 0 || choice.empty()) {
    Throw(ErrorKind::kValue, "a mask per ", what, " needs at least one mask and one ", what);
  }
  for (size_t i = 0; i < choice.size(); ++i) {
    if (choice[i] < 0 || choice[i] >= count) {
      Throw(ErrorKind::kValue, what, " ", i, " chooses mask ", choice[i], ", but there are ", count,
            " masks");
    }
  }
  for (const Mask& mask : masks) {
    const MaskKind inner = mask.node().kind;
    if (inner == MaskKind::kPerLayer || (inner == MaskKind::kPerHead && kind == inner)) {
      Throw(ErrorKind::kValue, "a mask per ", what, " cannot hold a mask per ",
            inner == MaskKind::kPerLayer ? "layer" : "head");
    }
  }
  MaskNode node = Leaf(kind);
  node.tree = CommonTree(masks);
  node.children = std::move(masks);
  node.ints = std::move(choice);
  return MaskNode::Make(std::move(node));
}

/*! \brief The outermost choice among masks by layer, then by head; nullptr if there is none. */
const MaskNode* OutermostChoice(const std::vector<Mask>& masks) {
  const MaskNode* found = nullptr;
  for (const Mask& mask : masks) {
    const MaskNode& node = mask.node();
    if (node.kind == MaskKind::kPerLayer) return &node;
    if (node.kind == MaskKind::kPerHead) found = &node;
  }
  return found;
}

/*! \brief An operator on masks. Of choices it makes the choice of the operator's results. */
Mask Operator(MaskKind kind, const std::vector<Mask>& operands) {
  const MaskNode* outer = OutermostChoice(operands);
  if (outer == nullptr) return Combination(kind, operands);
  std::vector<std::vector<int32_t>> seen;  // which child of each operand
  std::vector<Mask> masks;
  std::vector<int32_t> choice;
  for (size_t i = 0; i < outer->ints.size(); ++i) {
    std::vector<int32_t> children;
    std::vector<Mask> chosen;
    for (const Mask& operand : operands) {
      const MaskNode& node = operand.node();
      const bool chooses = node.kind == outer->kind;
      if (chooses && node.ints.size() != outer->ints.size()) {
        Throw(ErrorKind::kValue, "masks that choose for ", outer->ints.size(), " and for ",
              node.ints.size(), outer->kind == MaskKind::kPerLayer ? " layers" : " heads",
              " cannot be combined");
      }
      children.push_back(chooses ? node.ints[i] : 0);
      chosen.push_back(chooses ? node.children[node.ints[i]] : operand);
    }
    const auto found = std::find(seen.begin(), seen.end(), children);
    choice.push_back(static_cast<int32_t>(found - seen.begin()));
    if (found != seen.end()) continue;
    seen.push_back(children);
    masks.push_back(Operator(kind, chosen));
  }
  return outer->kind == MaskKind::kPerLayer ? Mask::PerLayer(std::move(masks), std::move(choice))
                                            : Mask::PerHead(std::move(masks), std::move(choice));
}

}  // namespace

const MaskNode* CommonTree(const std::vector<Mask>& children) {
  const MaskNode* tree = nullptr;
  for (const Mask& child : children) {
    const MaskNode* other = child.node().tree;
    if (other == nullptr) continue;
    if (tree != nullptr && tree->ints != other->ints) {
      Throw(ErrorKind::kValue,
            "a mask can hold one tree only: the pending tokens have one parent each");
    }
    tree = other;
  }
  return tree;
}

Mask Mask::Causal() { return MaskNode::Make(Leaf(MaskKind::kCausal)); }

Mask Mask::Tree(std::vector<int32_t> parents) {
  for (size_t i = 0; i < parents.size(); ++i) {
    if (parents[i] < -1) {
      Throw(ErrorKind::kValue, "parent of tree node ", i, " is ", parents[i],
            ": it must be an earlier pending node, or -1 for the committed context");
    }
  }
  MaskNode node = Leaf(MaskKind::kTree);
  node.ints = std::move(parents);
  auto shared = std::make_shared<MaskNode>(std::move(node));
  shared->tree = shared.get();
  return Mask(shared);
}

Mask Mask::Dense(const uint8_t* visible, int32_t num_new) {
  CheckSize("number of new tokens", num_new, 1);
  MaskNode node = Leaf(MaskKind::kDense);
  node.num_query_tokens = num_new;
  const int32_t query_words = NumTiles(num_new);
  node.words.assign(int64_t(num_new) * query_words, 0);
  for (int32_t query = 0; query < num_new; ++query) {
    const uint8_t* bytes = visible + int64_t(query) * num_new;
    for (int32_t word = 0; word < query_words; ++word) {
      const int32_t first = word * kTileKeys;
      node.words[int64_t(query) * query_words + word] =
          PackBytes(bytes + first, std::min(kTileKeys, num_new - first));
    }
  }
  return MaskNode::Make(std::move(node));
}

Mask Mask::Full(const uint8_t* visible, int32_t num_new, int32_t kv_len) {
  CheckSize("number of new tokens", num_new, 1);
  CheckSize("number of keys", kv_len, num_new);
  MaskNode node = Leaf(MaskKind::kFull);
  node.num_query_tokens = num_new;
  node.kv_len = kv_len;
  PlanFromBytes(visible, num_new, kv_len, &node.plan);
  return MaskNode::Make(std::move(node));
}

Mask Mask::Window(int32_t size, int32_t sinks) {
  CheckSize("window size", size, 1);
  CheckSize("number of attention sinks", sinks, 0);
  MaskNode node = Leaf(MaskKind::kWindow);
  node.size = size;
  node.sinks = sinks;
  return MaskNode::Make(std::move(node));
}

Mask Mask::PrefixLM(int32_t length) {
  CheckSize("prefix length", length, 0);
  MaskNode node = Leaf(MaskKind::kPrefixLM);
  node.size = length;
  return MaskNode::Make(std::move(node));
}

Mask Mask::Documents(const std::vector<int32_t>& ids) {
  CheckSize("number of document ids", static_cast<int32_t>(ids.size()), 1);
  MaskNode node = Leaf(MaskKind::kDocuments);
  node.kv_len = static_cast<int32_t>(ids.size());
  for (int32_t key = 0; key < node.kv_len; ++key) {
    if (key > 0 && ids[key] == ids[key - 1]) continue;
    node.ints.push_back(key);
    node.ints.push_back(ids[key]);
  }
  return MaskNode::Make(std::move(node));
}

Mask Mask::Ranges(const std::vector<std::vector<KeyRange>>& queries) {
  CheckSize("number of queries", static_cast<int32_t>(queries.size()), 1);
  MaskNode node = Leaf(MaskKind::kRanges);
  node.num_query_tokens = static_cast<int32_t>(queries.size());
  node.ints.assign(queries.size() + 1, 0);
  std::vector<KeyRange> sorted;
  for (size_t query = 0; query < queries.size(); ++query) {
    sorted.clear();
    for (const KeyRange& range : queries[query]) {
      if (range.begin < 0 || range.end < range.begin) {
        Throw(ErrorKind::kValue, "query ", query, " of the ranges holds [", range.begin, ", ",
              range.end, "): a range needs 0 <= begin <= end");
      }
      if (range.begin < range.end) sorted.push_back(range);
    }
    std::sort(sorted.begin(), sorted.end(),
              [](const KeyRange& a, const KeyRange& b) { return a.begin < b.begin; });
    const size_t first = node.ints.size();
    for (const KeyRange& range : sorted) {
      if (node.ints.size() > first && node.ints.back() >= range.begin) {
        node.ints.back() = std::max(node.ints.back(), range.end);
      } else {
        node.ints.push_back(range.begin);
        node.ints.push_back(range.end);
      }
      node.kv_len = std::max(node.kv_len, range.end);
    }
    node.ints[query + 1] = node.ints[query] + static_cast<int32_t>((node.ints.size() - first) / 2);
  }
  return MaskNode::Make(std::move(node));
}

Mask Mask::PerLayer(std::vector<Mask> masks, std::vector<int32_t> choice) {
  return Choice(MaskKind::kPerLayer, "layer", std::move(masks), std::move(choice));
}

Mask Mask::PerHead(std::vector<Mask> masks, std::vector<int32_t> choice) {
  return Choice(MaskKind::kPerHead, "head", std::move(masks), std::move(choice));
}

Mask operator&(const Mask& a, const Mask& b) { return Operator(MaskKind::kAnd, {a, b}); }

Mask operator|(const Mask& a, const Mask& b) { return Operator(MaskKind::kOr, {a, b}); }

Mask Mask::operator~() const { return Operator(MaskKind::kNot, {*this}); }

const std::vector<int32_t>* Mask::tree_parents() const {
  return node_->tree == nullptr ? nullptr : &node_->tree->ints;
}

}  // namespace kvctl
