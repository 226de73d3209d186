#include "kernels/cuda/device/device_plan.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>

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

template <typename T>
int32_t DevicePlanBuilder::Keep(RowKind kind, int64_t id, const T* values, int64_t count) {
  static_assert(sizeof(T) % sizeof(int32_t) == 0, "rows are of whole words");
  if (rows_ == nullptr) return Append(values, count);
  constexpr auto kWord = static_cast<int32_t>(sizeof(int32_t));
  const int32_t at = rows_->words->Keep(kind, id, reinterpret_cast<const int32_t*>(values),
                                        count * static_cast<int64_t>(sizeof(T)) / kWord);
  return rows_->offset + at * kWord;
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

WorkLimits DevicePlanBuilder::Limits(int32_t item_shape) const {
  return {shape_.group, kItemQueries[item_shape], shape_.num_blocks[item_shape],
          shape_.max_partial_queries};
}

std::vector<DevicePlanBuilder::ClassMasks> DevicePlanBuilder::Classify(const MaskTable& masks,
                                                                       const CudaSinks* sinks) {
  std::vector<ClassMasks> classes;
  for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
    const LayerMasks of_layer = masks.layer(layer);
    const LayerMasks of_sinks = sinks == nullptr ? LayerMasks{} : sinks->masks.layer(layer);
    const auto found = std::find_if(classes.begin(), classes.end(), [&](const ClassMasks& other) {
      return other.masks.plans == of_layer.plans && other.sinks.plans == of_sinks.plans;
    });
    layer_classes_.push_back(static_cast<int32_t>(found - classes.begin()));
    if (found == classes.end()) {
      classes.push_back({of_layer, of_sinks, 1});
    } else {
      ++found->num_layers;
    }
  }
  return classes;
}

int32_t DevicePlanBuilder::ChooseShape(const StepPlan& step,
                                       const std::vector<ClassMasks>& classes) {
  int32_t least = shape_.least_shape;
  for (const SequencePlan& sequence : step.sequences) {
    while (least + 1 < kNumItemShapes &&
           sequence.num_query_tokens * shape_.group > kItemQueries[least]) {
      ++least;
    }
  }
  if (!shares_ || step.sequences.size() < 2) return least;
  int32_t best = least;
  int64_t best_tiles = 0;
  for (int32_t shape = least; shape < kNumItemShapes; ++shape) {
    const int32_t tile_tokens = TileTokens(shape_.group, kItemQueries[shape]);
    int64_t tiles = 0;
    for (const ClassMasks& of : classes) {
      int64_t of_class = -shared_.Find(of.masks, Limits(shape)).saved;
      for (int32_t s = 0; s < static_cast<int32_t>(step.sequences.size()); ++s) {
        for (int32_t head = 0; head < shape_.num_kv_heads; ++head) {
          const MaskPlan& plan = of.masks.plan(s, head);
          for (int32_t block = 0; block < plan.num_blocks(); ++block) {
            const int32_t tokens =
                std::min(kBlockQueries, plan.num_query_tokens - block * kBlockQueries);
            const int32_t times = (tokens + tile_tokens - 1) / tile_tokens;
            for (int32_t i = plan.blocks[block]; i < plan.blocks[block + 1]; ++i) {
              of_class += int64_t{times} * CountTiles(plan.spans[i]);
            }
          }
        }
      }
      tiles += of_class * of.num_layers;
    }
    if (shape == least || 8 * tiles <= 7 * best_tiles) {
      best = shape;
      best_tiles = tiles;
    }
  }
  return best;
}

std::vector<SharedTiles> DevicePlanBuilder::ShareTiles(const LayerMasks& masks,
                                                       std::vector<QueryBlock>* blocks) {
  if (!shares_) return {};
  std::vector<SharedTiles> shared = shared_.Find(masks, Limits(item_shape_)).tiles;
  std::map<int32_t, int32_t> spans;  // by end
  for (SharedTiles& tiles : shared) {
    const auto [found, is_new] = spans.emplace(tiles.end, static_cast<int32_t>(spans_.size()));
    if (is_new) {
      spans_.push_back({0, tiles.end * kTileKeys, MaskSpan::kAllQueries, 0, ~uint64_t{0}});
    }
    tiles.span_begin = found->second;
    tiles.span_end = found->second + 1;
    for (QueryBlock& block : *blocks) {
      if (block.kv_head != tiles.kv_head) continue;
      const auto& members = tiles.sequences;
      if (std::find(members.begin(), members.end(), block.sequence) != members.end()) {
        block.shared_tiles = tiles.end;  // runs of a sequence are in order
      }
    }
  }
  return shared;
}

void DevicePlanBuilder::AddClass(const StepPlan& step, const ClassMasks& of) {
  std::vector<QueryBlock> blocks;
  for (int32_t s = 0; s < static_cast<int32_t>(step.sequences.size()); ++s) {
    const SequencePlan& sequence = step.sequences[s];
    for (int32_t at = 0; at * kBlockQueries < sequence.num_query_tokens; ++at) {
      std::vector<std::pair<const MaskPlan*, BlockSpans>> known;
      const auto spans_of = [&](const MaskPlan& plan) {
        const auto found = std::find_if(known.begin(), known.end(),
                                        [&](const auto& entry) { return entry.first == &plan; });
        if (found != known.end()) return found->second;
        return known.emplace_back(&plan, AddSpans(plan, at)).second;
      };
      for (int32_t head = 0; head < shape_.num_kv_heads; ++head) {
        QueryBlock block{};
        block.sequence = s;
        block.kv_head = head;
        block.query_begin = sequence.query_begin;
        block.first_token = at * kBlockQueries;
        block.num_tokens = std::min(kBlockQueries, sequence.num_query_tokens - block.first_token);
        block.keys = spans_of(of.masks.plan(s, head));
        if (of.sinks.plans != nullptr) block.sinks = spans_of(of.sinks.plan(s, head));
        blocks.push_back(block);
      }
    }
  }
  const std::vector<SharedTiles> shared = ShareTiles(of.masks, &blocks);
  classes_.push_back(work_.Add(blocks, shared, Limits(item_shape_)));
}

int32_t DevicePlanBuilder::AppendSequences(const StepPlan& step) {
  std::vector<PlanSequence> sequences;
  for (size_t s = 0; s < step.sequences.size(); ++s) {
    const SequencePlan& from = step.sequences[s];
    const int64_t id = rows_ == nullptr ? 0 : rows_->seq_ids[s];
    PlanSequence to{from.query_begin,
                    from.num_query_tokens,
                    from.num_committed,
                    from.kv_len(),
                    from.next_position,
                    -1,
                    -1,
                    -1};
    const int32_t pages = (from.kv_len() + shape_.page_size - 1) / shape_.page_size;
    to.page_table = Keep(RowKind::kPages, id, from.pages, pages);
    if (from.depths != nullptr) to.depths = Append(from.depths, from.num_pending);
    if (from.committed_positions != nullptr) {
      to.committed_positions =
          Keep(RowKind::kPositions, id, from.committed_positions, from.num_committed);
    }
    sequences.push_back(to);
  }
  return Append(sequences.data(), sequences.size());
}

void DevicePlanBuilder::Build(const StepPlan& step, const MaskTable& masks, const float* rope,
                              const CudaSinks* sinks, bool shares, const ResidentRows* rows) {
  arena_.assign((sizeof(PlanHeader) + 15) / 16 * 2, 0);
  spans_.clear();
  words_.clear();
  classes_.clear();
  work_.Clear();
  layer_classes_.clear();
  shares_ = shape_.shares && shares;
  rows_ = rows;
  shared_.SetStep(step);
  const std::vector<ClassMasks> classes = Classify(masks, sinks);
  item_shape_ = ChooseShape(step, classes);
  for (const ClassMasks& of : classes) AddClass(step, of);

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
  header.sequences = AppendSequences(step);
  header.spans = Append(spans_.data(), spans_.size());
  header.words = Append(words_.data(), words_.size());
  const auto keep = [&](RowKind kind, const auto& values) {
    return Keep(kind, 0, values.data(), static_cast<int64_t>(values.size()));
  };
  header.classes = keep(RowKind::kClasses, classes_);
  header.layer_classes = keep(RowKind::kLayerClasses, layer_classes_);
  header.ranges = keep(RowKind::kRanges, work_.ranges());
  header.items = keep(RowKind::kItems, work_.items());
  header.merges = keep(RowKind::kMerges, work_.merges());
  header.rows = keep(RowKind::kItemRows, work_.rows());
  const std::vector<int32_t> arrivals(num_merges(), 0);
  header.arrivals = Append(arrivals.data(), arrivals.size());
  std::memcpy(arena_.data(), &header, sizeof(header));
}

}  // namespace kvctl::cuda
