#include "kernels/cuda/device/device_plan.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kvctl/error.h"

namespace kvctl::cuda {
namespace {

/*! \brief Fewer tiles than this are not worth a work item and its partial results. */
constexpr int32_t kMinTiles = 4;

int32_t CountTiles(const MaskSpan& span) {
  return (span.end + kTileKeys - 1) / kTileKeys - span.begin / kTileKeys;
}

}  // namespace

template <typename T>
int32_t DevicePlanBuilder::Append(const T* values, int64_t count) {
  const size_t at = arena_.size();
  const size_t bytes = count * sizeof(T);
  if ((at + bytes / sizeof(uint64_t)) * sizeof(uint64_t) >
      std::numeric_limits<int32_t>::max() - 64) {
    Throw(ErrorKind::kValue, "the plan of a step does not fit 2 GiB");
  }
  arena_.resize(at + (bytes + 15) / 16 * 2);
  if (bytes > 0) std::memcpy(arena_.data() + at, values, bytes);
  return static_cast<int32_t>(at * sizeof(uint64_t));
}

int32_t DevicePlanBuilder::AddSpans(const MaskPlan& plan, int32_t block, Block* out) {
  const int32_t block_queries =
      std::min(kBlockQueries, plan.num_query_tokens - block * kBlockQueries);
  int32_t tiles = 0;
  out->span_begin = static_cast<int32_t>(spans_.size());
  for (int32_t i = plan.blocks[block]; i < plan.blocks[block + 1]; ++i) {
    const MaskSpan& span = plan.spans[i];
    PlanSpan copy{span.begin, span.end, MaskSpan::kAllQueries, tiles, ~uint64_t{0}};
    if (span.words != MaskSpan::kAllQueries) {
      copy.words = static_cast<int32_t>(words_.size());
      copy.any = 0;
      for (int32_t query = 0; query < block_queries; ++query) {
        words_.push_back(plan.words[span.words + query]);
        copy.any |= words_.back();
      }
    }
    tiles += CountTiles(span);
    spans_.push_back(copy);
  }
  out->span_end = static_cast<int32_t>(spans_.size());
  return tiles;
}

void DevicePlanBuilder::Cut(const std::vector<Block>& blocks) {
  const size_t first_range = ranges_.size();
  const int32_t item_queries = kItemQueries[item_shape_];
  int32_t tile_tokens = 1;  // a power of two, so that it divides the blocks of the mask
  while (2 * tile_tokens * shape_.group <= item_queries && 2 * tile_tokens <= kBlockQueries) {
    tile_tokens *= 2;
  }
  int64_t total = 0;
  for (const Block& block : blocks) {
    total += int64_t{block.num_tiles} * ((block.num_tokens + tile_tokens - 1) / tile_tokens);
  }
  // Each block of the grid gets one range of `share` tiles, so that all end together; a group of
  // queries is cut only where a range ends.
  const int64_t share = std::max<int64_t>(kMinTiles, (total + num_blocks() - 1) / num_blocks());
  const size_t first_item = items_.size();
  int32_t partial_queries = 0;
  int64_t before = 0;  // tiles of earlier groups
  const auto add = [&](const WorkItem& item) {
    // A range has the items whose middle lies in it. Those of a block that has them all are
    // counted.
    const int64_t middle = before + (item.tile_begin + item.tile_end) / 2;
    const int64_t owner = std::min<int64_t>(middle / share, num_blocks() - 1);
    const size_t ends = first_range + owner + 1;
    while (ranges_.size() < ends) {
      ranges_.push_back(static_cast<int32_t>(items_.size() - first_item));
    }
    items_.push_back(item);
  };
  for (const Block& block : blocks) {
    for (int32_t first = 0; first < block.num_tokens; first += tile_tokens) {
      const int32_t tokens = std::min(tile_tokens, block.num_tokens - first);
      const int32_t queries = tokens * shape_.group;
      std::vector<int32_t> cuts = {0};
      for (int64_t end = (before / share + 1) * share; end < before + block.num_tiles;
           end += share) {
        const auto cut = static_cast<int32_t>(end - before);
        const bool worth =
            cut - cuts.back() >= kMinTiles / 2 && block.num_tiles - cut >= kMinTiles / 2;
        if (worth) cuts.push_back(cut);
      }
      auto pieces = static_cast<int32_t>(cuts.size());
      cuts.push_back(block.num_tiles);
      if (partial_queries + pieces * queries > shape_.max_partial_queries) pieces = 1;
      WorkItem item{block.sequence,
                    block.kv_head,
                    block.first_token + first,
                    block.first_token + first + tokens,
                    block.span_begin,
                    block.span_end,
                    0,
                    block.num_tiles,
                    -1,
                    -1};
      if (pieces == 1) {
        add(item);
        before += block.num_tiles;
        continue;
      }
      item.merge = static_cast<int32_t>(merges_.size());
      merges_.push_back(
          {item.sequence, item.kv_head, item.token_begin, item.token_end, partial_queries, pieces});
      for (int32_t piece = 0; piece < pieces; ++piece) {
        item.tile_begin = cuts[piece];
        item.tile_end = cuts[piece + 1];
        item.partial = partial_queries;
        partial_queries += queries;
        add(item);
      }
      before += block.num_tiles;
    }
  }
  while (ranges_.size() < first_range + num_blocks() + 1) {
    ranges_.push_back(static_cast<int32_t>(items_.size() - first_item));
  }
}

void DevicePlanBuilder::AddClass(const StepPlan& step, const LayerMasks& masks) {
  std::vector<Block> blocks;
  for (int32_t s = 0; s < static_cast<int32_t>(step.sequences.size()); ++s) {
    const int32_t num_query_tokens = step.sequences[s].num_query_tokens;
    for (int32_t at = 0; at * kBlockQueries < num_query_tokens; ++at) {
      std::vector<std::pair<const MaskPlan*, Block>> known;
      for (int32_t head = 0; head < shape_.num_kv_heads; ++head) {
        const MaskPlan& plan = masks.plan(s, head);
        const auto found = std::find_if(known.begin(), known.end(),
                                        [&](const auto& entry) { return entry.first == &plan; });
        Block block{s,
                    head,
                    at * kBlockQueries,
                    std::min(kBlockQueries, num_query_tokens - at * kBlockQueries),
                    0,
                    0,
                    0};
        if (found != known.end()) {
          block.span_begin = found->second.span_begin;
          block.span_end = found->second.span_end;
          block.num_tiles = found->second.num_tiles;
        } else {
          block.num_tiles = AddSpans(plan, at, &block);
          known.emplace_back(&plan, block);
        }
        blocks.push_back(block);
      }
    }
  }
  PlanClass plan_class{static_cast<int32_t>(items_.size()), 0, static_cast<int32_t>(merges_.size()),
                       0, static_cast<int32_t>(ranges_.size())};
  Cut(blocks);
  plan_class.num_items = static_cast<int32_t>(items_.size()) - plan_class.first_item;
  plan_class.num_merges = static_cast<int32_t>(merges_.size()) - plan_class.first_merge;
  classes_.push_back(plan_class);
}

void DevicePlanBuilder::Build(const StepPlan& step, const MaskTable& masks, const float* rope) {
  arena_.assign((sizeof(PlanHeader) + 15) / 16 * 2, 0);
  spans_.clear();
  words_.clear();
  classes_.clear();
  items_.clear();
  ranges_.clear();
  merges_.clear();
  layer_classes_.clear();
  item_shape_ = 0;
  for (const SequencePlan& sequence : step.sequences) {
    while (item_shape_ + 1 < kNumItemShapes &&
           sequence.num_query_tokens * shape_.group > kItemQueries[item_shape_]) {
      ++item_shape_;
    }
  }
  std::vector<const MaskPlan*> seen;
  for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
    const LayerMasks of_layer = masks.layer(layer);
    const auto found = std::find(seen.begin(), seen.end(), of_layer.plans);
    layer_classes_.push_back(static_cast<int32_t>(found - seen.begin()));
    if (found != seen.end()) continue;
    seen.push_back(of_layer.plans);
    AddClass(step, of_layer);
  }

  PlanHeader header{};
  header.num_query_tokens = step.num_query_tokens();
  header.item_shape = item_shape_;
  header.slots = Append(step.slots.data(), step.num_query_tokens());
  header.positions = Append(step.positions.data(), step.num_query_tokens());
  header.rope =
      Append(rope, rope == nullptr ? 0 : int64_t{step.num_query_tokens()} * shape_.rotary_dim);
  std::vector<PlanSequence> sequences;
  for (const SequencePlan& from : step.sequences) {
    PlanSequence to{from.query_begin,
                    from.num_query_tokens,
                    from.num_committed,
                    from.kv_len(),
                    from.next_position,
                    -1,
                    -1,
                    -1};
    const int32_t pages = (from.kv_len() + shape_.page_size - 1) / shape_.page_size;
    to.page_table = Append(from.pages, pages);
    if (from.depths != nullptr) to.depths = Append(from.depths, from.num_pending);
    if (from.committed_positions != nullptr) {
      to.committed_positions = Append(from.committed_positions, from.num_committed);
    }
    sequences.push_back(to);
  }
  header.sequences = Append(sequences.data(), sequences.size());
  header.spans = Append(spans_.data(), spans_.size());
  header.words = Append(words_.data(), words_.size());
  header.classes = Append(classes_.data(), classes_.size());
  header.layer_classes = Append(layer_classes_.data(), layer_classes_.size());
  header.ranges = Append(ranges_.data(), ranges_.size());
  header.items = Append(items_.data(), items_.size());
  header.merges = Append(merges_.data(), merges_.size());
  const std::vector<int32_t> arrivals(merges_.size(), 0);
  header.arrivals = Append(arrivals.data(), arrivals.size());
  std::memcpy(arena_.data(), &header, sizeof(header));
}

}  // namespace kvctl::cuda
