// From a mask expression to a plan for one sequence.
#include <algorithm>

#include "core/mask/mask_builder.h"
#include "core/mask/mask_node.h"
#include "core/mask/mask_positions.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

/*! \brief Each query sees the keys up to its own. */
void PlanCausalChain(const SequencePlan& sequence, MaskPlan* plan) {
  const int32_t kv_len = sequence.kv_len();
  MaskBuilder builder(plan, sequence.num_query_tokens, kv_len);
  for (int32_t begin = 0; begin < sequence.num_query_tokens; begin += kBlockQueries) {
    const int32_t queries = std::min(kBlockQueries, sequence.num_query_tokens - begin);
    const int32_t own =
        kv_len - sequence.num_query_tokens + begin;  // key of the block's first query
    if (queries == 1) {
      builder.AddFull(0, NumTiles(own + 1));
      builder.EndBlock();
      continue;
    }
    int32_t tile = (own + 1) / kTileKeys;
    builder.AddFull(0, tile);
    for (; tile * kTileKeys < own + queries; ++tile) {
      uint64_t* words = builder.NewWords(queries);
      for (int32_t query = 0; query < queries; ++query) {
        words[query] = LowBits(std::clamp(own + query + 1 - tile * kTileKeys, 0, kTileKeys));
      }
      builder.AddWords(tile, tile + 1, queries);  // the first query does not see the last key
    }
    builder.EndBlock();
  }
}

/*! \brief Each query sees the committed keys, its ancestors and itself. */
void PlanAncestors(const SequencePlan& sequence, const int32_t* parents, MaskPlan* plan) {
  const int32_t kv_len = sequence.kv_len();
  const int32_t first_tile = sequence.num_committed / kTileKeys;
  const int32_t shift = sequence.num_committed % kTileKeys;
  const int32_t query_words = NumTiles(kv_len) - first_tile;
  std::vector<uint64_t>& seen = plan->scratch;  // [num_pending, query_words]
  seen.resize(int64_t(sequence.num_pending) * query_words);
  for (int32_t node = 0; node < sequence.num_pending; ++node) {
    uint64_t* query = seen.data() + int64_t(node) * query_words;
    if (parents[node] >= 0) {
      std::copy_n(seen.data() + int64_t(parents[node]) * query_words, query_words, query);
    } else {
      std::fill_n(query, query_words, 0);
      query[0] = LowBits(shift);
    }
    query[(shift + node) / kTileKeys] |= uint64_t{1} << (shift + node) % kTileKeys;
  }

  MaskBuilder builder(plan, sequence.num_query_tokens, kv_len);
  const uint64_t* first_query =
      seen.data() + int64_t(sequence.num_pending - sequence.num_query_tokens) * query_words;
  for (int32_t begin = 0; begin < sequence.num_query_tokens; begin += kBlockQueries) {
    const int32_t queries = std::min(kBlockQueries, sequence.num_query_tokens - begin);
    builder.AddFull(0, first_tile);
    for (int32_t word = 0; word < query_words; ++word) {
      uint64_t* words = builder.NewWords(queries);
      for (int32_t query = 0; query < queries; ++query) {
        words[query] = first_query[int64_t(begin + query) * query_words + word];
      }
      builder.CommitWords(first_tile + word, first_tile + word + 1, queries);
    }
    builder.EndBlock();
  }
}

void PlanCausal(const SequencePlan& sequence, MaskPlan* plan) {
  if (sequence.parents == nullptr) {
    PlanCausalChain(sequence, plan);
  } else {
    PlanAncestors(sequence, sequence.parents, plan);
  }
}

void PlanTree(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan) {
  const auto size = static_cast<int32_t>(node.ints.size());
  if (size != sequence.num_pending && size != sequence.num_query_tokens) {
    Throw(ErrorKind::kValue, "the mask's tree has ", size, " nodes, but ",
          sequence.num_query_tokens, " tokens are new and ", sequence.num_pending,
          " pending with them, and it must have one for each of either");
  }
  PlanCausal(sequence, plan);  // the sequence's parents are those of the tree
}

void PlanDense(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan) {
  const int32_t past = sequence.kv_len() - sequence.num_query_tokens;
  const int32_t shift = past % kTileKeys;
  const int32_t first_tile = past / kTileKeys;
  const int32_t query_words = NumTiles(node.num_query_tokens);
  MaskBuilder builder(plan, sequence.num_query_tokens, sequence.kv_len());
  for (int32_t begin = 0; begin < sequence.num_query_tokens; begin += kBlockQueries) {
    const int32_t queries = std::min(kBlockQueries, sequence.num_query_tokens - begin);
    builder.AddFull(0, first_tile);
    for (int32_t tile = 0; first_tile + tile < NumTiles(sequence.kv_len()); ++tile) {
      uint64_t* words = builder.NewWords(queries);
      for (int32_t query = 0; query < queries; ++query) {
        const uint64_t* bits = node.words.data() + int64_t(begin + query) * query_words;
        words[query] = tile < query_words ? bits[tile] << shift : 0;
        if (tile == 0) {
          words[query] |= LowBits(shift);
        } else if (shift > 0) {
          words[query] |= bits[tile - 1] >> (kTileKeys - shift);
        }
      }
      builder.CommitWords(first_tile + tile, first_tile + tile + 1, queries);
    }
    builder.EndBlock();
  }
}

void CheckQueries(const MaskNode& node, const SequencePlan& sequence) {
  if (node.num_query_tokens != sequence.num_query_tokens) {
    Throw(ErrorKind::kValue, "the mask is for ", node.num_query_tokens,
          " new tokens, but the sequence gets ", sequence.num_query_tokens);
  }
}

void CheckKeys(const MaskNode& node, const SequencePlan& sequence) {
  if (node.kv_len != sequence.kv_len()) {
    Throw(ErrorKind::kValue, "the mask is for ", node.kv_len, " keys, but the sequence has ",
          sequence.kv_len(), " (", sequence.kv_len() - sequence.num_query_tokens,
          " in the cache and ", sequence.num_query_tokens, " new ones)");
  }
}

void PlanDocuments(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan) {
  CheckKeys(node, sequence);
  struct Run {
    int32_t id;
    KeyRange range;
  };
  std::vector<Run> runs;
  for (size_t i = 0; i < node.ints.size(); i += 2) {
    const int32_t end = i + 2 < node.ints.size() ? node.ints[i + 2] : node.kv_len;
    runs.push_back({node.ints[i + 1], {node.ints[i], end}});
  }
  const std::vector<Run> by_key = runs;
  std::stable_sort(runs.begin(), runs.end(),
                   [](const Run& a, const Run& b) { return a.id < b.id; });
  RangeLists lists;
  size_t at = 0;
  for (int32_t query = 0; query < sequence.num_query_tokens; ++query) {
    const int32_t own = sequence.kv_len() - sequence.num_query_tokens + query;
    while (by_key[at].range.end <= own) ++at;
    const int32_t id = by_key[at].id;
    auto run = std::lower_bound(runs.begin(), runs.end(), id,
                                [](const Run& a, int32_t value) { return a.id < value; });
    for (; run != runs.end() && run->id == id; ++run) lists.Add(run->range);
    lists.EndQuery();
  }
  lists.MakePlan(sequence, plan);
}

void PlanRanges(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan) {
  CheckQueries(node, sequence);
  if (node.kv_len > sequence.kv_len()) {
    Throw(ErrorKind::kValue, "a range of the mask ends at key ", node.kv_len,
          ", but the sequence has ", sequence.kv_len(), " keys, new tokens included");
  }
  RangeLists lists;
  const int32_t* pairs = node.ints.data() + node.num_query_tokens + 1;
  for (int32_t query = 0; query < node.num_query_tokens; ++query) {
    for (int32_t i = node.ints[query]; i < node.ints[query + 1]; ++i) {
      lists.Add({pairs[2 * i], pairs[2 * i + 1]});
    }
    lists.EndQuery();
  }
  lists.MakePlan(sequence, plan);
}

void PlanNode(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan);

/*! \brief Ancestors, intersected with a window or united with a prefix of positions. */
void PlanPositional(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan) {
  const LogicalPositions positions(sequence);
  RangeLists lists;
  for (int32_t query = 0; query < sequence.num_query_tokens; ++query) {
    if (node.kind == MaskKind::kWindow) {
      positions.AddWindow(query, node.size, node.sinks, &lists);
    } else {
      positions.AddPrefix(query, node.size, &lists);
    }
    lists.EndQuery();
  }
  if (sequence.parents == nullptr) {
    lists.MakePlan(sequence, plan);  // a chain's ranges are causal already
    return;
  }
  MaskPlan by_position, ancestors;
  lists.MakePlan(sequence, &by_position);
  PlanCausal(sequence, &ancestors);
  if (node.kind == MaskKind::kWindow) {
    IntersectPlans(ancestors, by_position, plan);
  } else {
    UnitePlans(ancestors, by_position, plan);
  }
}

void PlanNode(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan) {
  switch (node.kind) {
    case MaskKind::kCausal:
      return PlanCausal(sequence, plan);
    case MaskKind::kTree:
      return PlanTree(node, sequence, plan);
    case MaskKind::kDense:
      CheckQueries(node, sequence);
      return PlanDense(node, sequence, plan);
    case MaskKind::kFull:
      CheckQueries(node, sequence);
      CheckKeys(node, sequence);
      plan->num_query_tokens = node.num_query_tokens;
      plan->kv_len = node.kv_len;
      plan->blocks = node.plan.blocks;
      plan->spans = node.plan.spans;
      plan->words = node.plan.words;
      return;
    case MaskKind::kWindow:
    case MaskKind::kPrefixLM:
      return PlanPositional(node, sequence, plan);
    case MaskKind::kDocuments:
      return PlanDocuments(node, sequence, plan);
    case MaskKind::kRanges:
      return PlanRanges(node, sequence, plan);
    case MaskKind::kNot: {
      MaskPlan inner;
      PlanNode(node.children[0].node(), sequence, &inner);
      return ComplementPlan(inner, plan);
    }
    case MaskKind::kAnd:
    case MaskKind::kOr: {
      MaskPlan a, b;
      PlanNode(node.children[0].node(), sequence, &a);
      PlanNode(node.children[1].node(), sequence, &b);
      return node.kind == MaskKind::kAnd ? IntersectPlans(a, b, plan) : UnitePlans(a, b, plan);
    }
    case MaskKind::kPerLayer:
    case MaskKind::kPerHead:
      break;
  }
  Throw(ErrorKind::kInternal, "a mask per layer or head was not resolved before lowering");
}

}  // namespace

void LowerMask(const Mask* mask, const SequencePlan& sequence, MaskPlan* plan) {
  if (mask == nullptr) {
    PlanCausal(sequence, plan);
  } else {
    PlanNode(mask->node(), sequence, plan);
  }
  if (sequence.depths != nullptr) AssignChunks(sequence, plan);
}

}  // namespace kvctl
