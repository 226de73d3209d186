#include <map>
#include <random>
#include <tuple>

#include "../kernels/attention/attention_case.h"
#include "check.h"
#include "kernels/cuda/device/device_plan.h"
#include "kernels/cuda_plugin.h"
#include "kvctl/error.h"

namespace kvctl::cuda {
namespace {

template <typename T>
const T* Part(const DevicePlanBuilder& builder, int32_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(builder.arena().data()) + offset);
}

/*! \brief A step over sequences of these (past, new) tokens. */
struct Step {
  Step(PagedLayer* layer, const std::vector<std::pair<int32_t, int32_t>>& lengths) {
    for (const auto& [past, queries] : lengths) {
      sequences.emplace_back(layer, past, std::vector<int32_t>{}, queries, queries);
      sequences.back().plan.query_begin = plan.num_query_tokens();
      for (int32_t i = 0; i < queries; ++i) {
        plan.slots.push_back(7 * i + past);
        plan.positions.push_back(past + i);
      }
    }
    for (const TestSequence& sequence : sequences) plan.sequences.push_back(sequence.plan);
  }
  std::vector<TestSequence> sequences;
  StepPlan plan;
};

/*! \brief How many of the partial results are written by some item, once; and every merge reads
 * results of its own. */
int32_t CountPartials(const DevicePlanBuilder& builder, int32_t group) {
  const PlanHeader& header = builder.header();
  const PlanClass work = *Part<PlanClass>(builder, header.classes);
  std::map<int32_t, int32_t> writers;  // by partial result
  for (int32_t i = 0; i < work.num_items; ++i) {
    const WorkItem& item = Part<WorkItem>(builder, header.items)[i];
    const int32_t queries = (item.token_end - item.token_begin) * group;
    for (int32_t q = 0; item.partial >= 0 && q < queries; ++q) ++writers[item.partial + q];
  }
  int32_t read = 0;
  for (int32_t i = 0; i < work.num_merges; ++i) {
    const MergeItem& merge = Part<MergeItem>(builder, header.merges)[i];
    EXPECT_EQ(merge.partial, read);
    read += (merge.token_end - merge.token_begin) * group * merge.num_partials;
  }
  EXPECT_EQ(static_cast<int32_t>(writers.size()), read);
  for (const auto& [partial, count] : writers) {
    EXPECT(partial < read);
    EXPECT_EQ(count, 1);
  }
  return read;
}

}  // namespace

TEST(DevicePlanSplitsEveryBlockIntoItemsThatCoverIt) {
  PagedLayer layer(Shape{8, 2, 8, 16}, DType::kFloat16, 600, 1);
  Step step(&layer, {{0, 130}, {2000, 3}, {700, 65}, {5, 1}});
  MaskTable masks;
  masks.Lower(nullptr, step.plan, 3, 2);
  for (const int32_t blocks : {1, 8, 50, 400}) {
    for (const int32_t capacity : {0, 700, 1 << 20}) {
      DevicePlanBuilder builder({3, 2, 4, 16, {blocks, blocks, blocks}, capacity, 0});
      builder.Build(step.plan, masks, nullptr);
      const PlanHeader& header = builder.header();
      EXPECT_EQ(header.num_query_tokens, 199);
      for (int32_t i = 0; i < 199; ++i) {
        EXPECT_EQ(Part<int32_t>(builder, header.slots)[i], step.plan.slots[i]);
        EXPECT_EQ(Part<int32_t>(builder, header.positions)[i], step.plan.positions[i]);
      }
      EXPECT_EQ(builder.layer_class(2), 0);  // the layers have the same mask
      const PlanClass work = *Part<PlanClass>(builder, header.classes);
      EXPECT_EQ(work.num_merges, builder.num_merges());
      std::map<std::tuple<int32_t, int32_t, int32_t>, int32_t> ends;  // by first token: tiles seen
      int32_t tokens = 0, partial_queries = 0;
      for (int32_t i = 0; i < work.num_items; ++i) {
        const WorkItem& item = Part<WorkItem>(builder, header.items)[i];
        const int32_t queries = (item.token_end - item.token_begin) * 4;
        EXPECT(queries > 0 && queries <= kMaxItemQueries);
        EXPECT_EQ(item.token_begin / kBlockQueries, (item.token_end - 1) / kBlockQueries);
        int32_t& end = ends[{item.sequence, item.kv_head, item.token_begin}];
        EXPECT_EQ(item.tile_begin, end);  // in order, without gaps
        if (end == 0) tokens += item.token_end - item.token_begin;
        end = item.tile_end;
        if (item.partial >= 0) {
          EXPECT_EQ(item.partial, partial_queries);
          partial_queries += queries;
        }
      }
      EXPECT_EQ(tokens, 2 * 199);
      EXPECT(partial_queries <= capacity);
      // Causal: a block sees the tiles up to that of its last token.
      for (const auto& [key, end] : ends) {
        const SequencePlan& sequence = step.plan.sequences[std::get<0>(key)];
        const int32_t block_end = std::min(sequence.num_query_tokens,
                                           (std::get<2>(key) / kBlockQueries + 1) * kBlockQueries);
        EXPECT_EQ(end, (sequence.num_committed + block_end + kTileKeys - 1) / kTileKeys);
      }
      // The grid's blocks have all items, in order, and none much more than its share of the tiles.
      const int32_t* range = Part<int32_t>(builder, header.ranges) + work.first_range;
      int32_t total = 0;
      for (int32_t i = 0; i < work.num_items; ++i) {
        const WorkItem& item = Part<WorkItem>(builder, header.items)[i];
        total += item.tile_end - item.tile_begin;
      }
      EXPECT_EQ(range[0], 0);
      EXPECT_EQ(range[blocks], work.num_items);
      for (int32_t b = 0; b < blocks; ++b) {
        EXPECT(range[b] <= range[b + 1]);
        int32_t tiles = 0;
        for (int32_t i = range[b]; i < range[b + 1]; ++i) {
          const WorkItem& item = Part<WorkItem>(builder, header.items)[i];
          tiles += item.tile_end - item.tile_begin;
        }
        if (capacity == 1 << 20) EXPECT(tiles <= std::max(4, (total + blocks - 1) / blocks) + 4);
      }
      int32_t merged = 0;
      for (int32_t i = 0; i < work.num_merges; ++i) {
        const MergeItem& merge = Part<MergeItem>(builder, header.merges)[i];
        EXPECT_EQ(merge.partial, merged);
        merged += (merge.token_end - merge.token_begin) * 4 * merge.num_partials;
      }
      EXPECT_EQ(merged, partial_queries);
    }
  }
}

TEST(DevicePlanTakesTheLeastShapeOfItemsThatHoldsEverySequence) {
  PagedLayer layer(Shape{8, 2, 8, 16}, DType::kFloat16, 100, 1);
  const std::vector<int32_t> all = layer.free;
  for (const auto& [queries, shape] : {std::pair{1, 0}, {4, 0}, {5, 1}, {8, 1}, {9, 2}, {40, 2}}) {
    layer.free = all;
    Step step(&layer, {{20, queries}, {5, 1}});
    MaskTable masks;
    masks.Lower(nullptr, step.plan, 1, 2);
    DevicePlanBuilder builder({1, 2, 4, 16, {9, 6, 3}, 1 << 20, 0});
    builder.Build(step.plan, masks, nullptr);
    EXPECT_EQ(builder.item_shape(), shape);
    EXPECT_EQ(builder.header().item_shape, shape);
    EXPECT_EQ(builder.num_blocks(), 9 - 3 * shape);
  }
}

TEST(DevicePlanMergesWhatQueriesSeeOfRenumberedSinks) {
  PagedLayer layer(Shape{8, 2, 8, 16}, DType::kFloat16, 600, 1);
  Step step(&layer, {{900, 70}, {700, 3}, {5, 1}});
  // As ForwardStep splits them: the first two sequences see a window, and sinks far before it.
  const Mask window = Mask::Window(100), sinks = Mask::Window(100, 4) & ~window;
  const Mask none = ~(Mask::Causal() | ~Mask::Causal());
  const Mask *near[] = {&window, &window, nullptr}, *far[] = {&sinks, &sinks, &none};
  MaskTable masks, sink_masks;
  masks.Lower(near, step.plan, 1, 2);
  sink_masks.Lower(far, step.plan, 1, 2);
  std::vector<int32_t> positions(74, 103);
  const CudaSinks of_sinks{sink_masks, positions, nullptr, nullptr};
  for (const int32_t blocks : {1, 50}) {
    for (const int32_t capacity : {0, 1 << 20}) {
      DevicePlanBuilder builder({1, 2, 4, 16, {blocks, blocks, blocks}, capacity, 0});
      builder.Build(step.plan, masks, nullptr, &of_sinks);
      const PlanHeader& header = builder.header();
      EXPECT_EQ(header.has_sinks, 1);
      EXPECT_EQ(Part<int32_t>(builder, header.sink_positions)[73], 103);
      const PlanClass work = *Part<PlanClass>(builder, header.classes);
      std::map<int32_t, int32_t> queries;  // at sinks, by sequence
      for (int32_t i = 0; i < work.num_items; ++i) {
        const WorkItem& item = Part<WorkItem>(builder, header.items)[i];
        if (item.at_sinks == 0) continue;
        EXPECT(item.merge >= 0 && item.partial >= 0);
        queries[item.sequence] += item.token_end - item.token_begin;
      }
      EXPECT(queries == (std::map<int32_t, int32_t>{{0, 2 * 70}, {1, 2 * 3}}));
      const int32_t partials = CountPartials(builder, 4);
      EXPECT(partials >= 2 * 2 * 73 * 4);  // two of each query
      if (capacity == 0) EXPECT_EQ(partials, 2 * 2 * 73 * 4);
    }
  }
}

TEST(DevicePlanSeparatesLayersWithDifferentMasks) {
  PagedLayer layer(Shape{4, 2, 8, 16}, DType::kFloat16, 100, 1);
  Step step(&layer, {{200, 2}});
  const Mask mask = Mask::PerLayer({Mask::Window(10), Mask::Causal()}, {0, 1, 0});
  const Mask* pointer = &mask;
  MaskTable masks;
  masks.Lower(&pointer, step.plan, 3, 2);
  DevicePlanBuilder builder({3, 2, 2, 16, {4, 4, 4}, 0, 0});
  builder.Build(step.plan, masks, nullptr);
  EXPECT_EQ(builder.item_shape(), 0);
  EXPECT_EQ(builder.layer_class(0), builder.layer_class(2));
  EXPECT(builder.layer_class(0) != builder.layer_class(1));
  const auto tiles = [&](int32_t layer_index) {
    const PlanHeader& header = builder.header();
    const PlanClass& work =
        Part<PlanClass>(builder, header.classes)[builder.layer_class(layer_index)];
    return Part<WorkItem>(builder, header.items)[work.first_item].tile_end;
  };
  EXPECT_EQ(tiles(0), 2);  // positions 191 to 201
  EXPECT_EQ(tiles(1), 4);
}

}  // namespace kvctl::cuda
