/*!
 * \file core/mask/mask_node.h
 * \brief One node of a mask's immutable expression.
 */
#ifndef KVCTL_CORE_MASK_MASK_NODE_H_
#define KVCTL_CORE_MASK_MASK_NODE_H_

#include <memory>
#include <utility>
#include <vector>

#include "core/mask/mask_plan.h"
#include "kvctl/mask.h"

namespace kvctl {

/*! \brief The constructors of Mask, numbered as in Encode. */
enum class MaskKind : int32_t {
  kCausal = 0,
  kTree = 1,       // ints: parents
  kDense = 2,      // num_query_tokens; words: [num_query_tokens, ceil(num_query_tokens / 64)]
  kFull = 3,       // num_query_tokens, kv_len; plan
  kWindow = 4,     // size, sinks
  kPrefixLM = 5,   // size
  kDocuments = 6,  // kv_len; ints: (first key, id) of each run of equal ids
  kRanges = 7,  // num_query_tokens; ints: num_query_tokens + 1 offsets, then (begin, end), sorted
                // and disjoint
  kAnd = 8,     // children: two
  kOr = 9,      // children: two
  kNot = 10,    // children: one
  kPerLayer = 11,  // children; ints: child of each layer
  kPerHead = 12,   // children; ints: child of each KV head
};

constexpr int32_t kMaxMaskDepth = 1000;

struct MaskNode {
  MaskKind kind = MaskKind::kCausal;
  int32_t num_query_tokens = 0;
  int32_t kv_len = 0;
  int32_t size = 0;
  int32_t sinks = 0;
  std::vector<int32_t> ints;
  std::vector<uint64_t> words;
  MaskPlan plan;
  std::vector<Mask> children;
  int32_t depth = 0;  // depth of the expression; bounded, since masks are walked recursively
  const MaskNode* tree = nullptr;  // the Tree inside, this node included; kept alive by children

  static Mask Make(MaskNode node) {
    return Mask(std::make_shared<const MaskNode>(std::move(node)));
  }
};

/*! \brief The Tree that the children hold. \throws kValue if they hold trees that differ. */
const MaskNode* CommonTree(const std::vector<Mask>& children);

}  // namespace kvctl

#endif  // KVCTL_CORE_MASK_MASK_NODE_H_
