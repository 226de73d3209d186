#include "kernels/cuda/device/device_plan.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kvctl/error.h"

namespace kvctl::cuda {
namespace {

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

BlockSpans DevicePlanBuilder::AddSpans(const MaskPlan& plan, int32_t block) {
  const int32_t block_queries =
      std::min(kBlockQueries, plan.num_query_tokens - block * kBlockQueries);
  BlockSpans added;
  added.begin = static_cast<int32_t>(spans_.size());
  for (int32_t i = plan.blocks[block]; i < plan.blocks[block + 1]; ++i) {
    const MaskSpan& span = plan.spans[i];
    PlanSpan copy{span.begin, span.end, MaskSpan::kAllQueries, added.num_tiles, ~uint64_t{0}};
    if (span.words != MaskSpan::kAllQueries) {
      copy.words = static_cast<int32_t>(words_.size());
      copy.any = 0;
      for (int32_t query = 0; query < block_queries; ++query) {
        words_.push_back(plan.words[span.words + query]);
        copy.any |= words_.back();
      }
    }
    added.num_tiles += CountTiles(span);
    spans_.push_back(copy);
  }
  added.end = static_cast<int32_t>(spans_.size());
  return added;
}

void DevicePlanBuilder::AddClass(const StepPlan& step, const LayerMasks& masks,
                                 const LayerMasks& sinks) {
  std::vector<QueryBlock> blocks;
  for (int32_t s = 0; s < static_cast<int32_t>(step.sequences.size()); ++s) {
    const int32_t num_query_tokens = step.sequences[s].num_query_tokens;
    for (int32_t at = 0; at * kBlockQueries < num_query_tokens; ++at) {
      std::vector<std::pair<const MaskPlan*, BlockSpans>> known;
      const auto spans_of = [&](const MaskPlan& plan) {
        const auto found = std::find_if(known.begin(), known.end(),
                                        [&](const auto& entry) { return entry.first == &plan; });
        if (found != known.end()) return found->second;
        return known.emplace_back(&plan, AddSpans(plan, at)).second;
      };
      for (int32_t head = 0; head < shape_.num_kv_heads; ++head) {
        QueryBlock block{s,
                         head,
                         at * kBlockQueries,
                         std::min(kBlockQueries, num_query_tokens - at * kBlockQueries),
                         spans_of(masks.plan(s, head)),
                         {}};
        if (sinks.plans != nullptr) block.sinks = spans_of(sinks.plan(s, head));
        blocks.push_back(block);
      }
    }
  }
  classes_.push_back(work_.Add(
      blocks, {shape_.group, kItemQueries[item_shape_], num_blocks(), shape_.max_partial_queries}));
}

void DevicePlanBuilder::Build(const StepPlan& step, const MaskTable& masks, const float* rope,
                              const CudaSinks* sinks) {
  arena_.assign((sizeof(PlanHeader) + 15) / 16 * 2, 0);
  spans_.clear();
  words_.clear();
  classes_.clear();
  work_.Clear();
  layer_classes_.clear();
  item_shape_ = 0;
  for (const SequencePlan& sequence : step.sequences) {
    while (item_shape_ + 1 < kNumItemShapes &&
           sequence.num_query_tokens * shape_.group > kItemQueries[item_shape_]) {
      ++item_shape_;
    }
  }
  std::vector<std::pair<const MaskPlan*, const MaskPlan*>> seen;
  for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
    const LayerMasks of_layer = masks.layer(layer);
    const LayerMasks of_sinks = sinks == nullptr ? LayerMasks{} : sinks->masks.layer(layer);
    const std::pair both(of_layer.plans, of_sinks.plans);
    const auto found = std::find(seen.begin(), seen.end(), both);
    layer_classes_.push_back(static_cast<int32_t>(found - seen.begin()));
    if (found != seen.end()) continue;
    seen.push_back(both);
    AddClass(step, of_layer, of_sinks);
  }

  PlanHeader header{};
  header.num_query_tokens = step.num_query_tokens();
  header.item_shape = item_shape_;
  header.slots = Append(step.slots.data(), step.num_query_tokens());
  header.positions = Append(step.positions.data(), step.num_query_tokens());
  header.rope =
      Append(rope, rope == nullptr ? 0 : int64_t{step.num_query_tokens()} * shape_.rotary_dim);
  header.has_sinks = sinks != nullptr;
  if (sinks != nullptr) {
    header.sink_positions = Append(sinks->positions.data(), step.num_query_tokens());
    header.sink_rope =
        Append(sinks->rope,
               sinks->rope == nullptr ? 0 : int64_t{step.num_query_tokens()} * shape_.rotary_dim);
  }
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
  header.ranges = Append(work_.ranges().data(), work_.ranges().size());
  header.items = Append(work_.items().data(), work_.items().size());
  header.merges = Append(work_.merges().data(), work_.merges().size());
  const std::vector<int32_t> arrivals(num_merges(), 0);
  header.arrivals = Append(arrivals.data(), arrivals.size());
  std::memcpy(arena_.data(), &header, sizeof(header));
}

}  // namespace kvctl::cuda
