#include <map>
#include <set>
#include <tuple>

#include "check.h"
#include "cuda_attention.h"

namespace kvctl {
namespace {

/*! \brief A sequence that shares the first pages of another, with keys and new tokens of its own.
 */
TestSequence Fork(PagedLayer* layer, const TestSequence& parent, int32_t shared, int32_t own,
                  std::vector<int32_t> tree, int32_t queries) {
  const int32_t page_size = layer->shape.page_size;
  TestSequence child(layer, shared + own, std::move(tree), queries, queries);
  for (int32_t page = 0; page < shared / page_size; ++page) {
    layer->free.push_back(child.pages[page]);
    child.pages[page] = parent.pages[page];
  }
  for (int32_t key = shared / page_size * page_size; key < shared; ++key) {  // a page in part
    layer->Copy(parent.pages[key / page_size], key % page_size, child.pages[key / page_size],
                key % page_size);
  }
  child.Link();
  return child;
}

std::vector<float> RandomQueries(PagedLayer* layer, const std::vector<TestSequence>& batch) {
  int64_t tokens = 0;
  for (const TestSequence& sequence : batch) tokens += sequence.plan.num_query_tokens;
  return Rounded(*layer, layer->Random(tokens * layer->shape.qo_heads * layer->shape.head_dim));
}

/*! \brief The largest error of a sequence against float64, relative to the type's bound. */
double ErrorOfBatch(const PagedLayer& layer, const std::vector<TestSequence>& batch,
                    const std::vector<const Mask*>& masks, const std::vector<float>& q,
                    const Output& output, const AttentionArgs& args = {}) {
  double worst = 0;
  int64_t at = 0;
  for (size_t s = 0; s < batch.size(); ++s) {
    const int64_t size =
        int64_t{batch[s].plan.num_query_tokens} * layer.shape.qo_heads * layer.shape.head_dim;
    MaskPlan plan;
    LowerMask(masks.empty() ? nullptr : masks[s], batch[s].plan, &plan);
    const std::vector<float> own(output.out.begin() + at, output.out.begin() + at + size);
    const double error = RelativeError(own, Reference(layer, batch[s], plan, q.data() + at, args)) /
                         Bound(layer.dtype);
    worst = std::max(worst, std::isnan(error) ? INFINITY : error);
    at += size;
  }
  return worst;
}

/*! \brief How often the items of a step read each page and KV head; and every query sees every
 * tile of its mask once. */
std::map<std::pair<int32_t, int32_t>, int32_t> CountReads(const std::vector<TestSequence>& batch,
                                                          int32_t group, int32_t kv_heads,
                                                          int32_t page_size, bool shares) {
  StepPlan step;
  for (TestSequence sequence : batch) {
    sequence.plan.query_begin = step.num_query_tokens();
    step.slots.resize(step.num_query_tokens() + sequence.plan.num_query_tokens);
    step.sequences.push_back(sequence.plan);
  }
  for (size_t s = 0; s < batch.size(); ++s) step.sequences[s].pages = batch[s].pages.data();
  step.positions.resize(step.num_query_tokens());
  MaskTable masks;
  masks.Lower(nullptr, step, 1, kv_heads);
  cuda::DevicePlanBuilder builder(
      {1, kv_heads, group, page_size, {24, 24, 24}, 1 << 20, 0, shares});
  builder.Build(step, masks, nullptr);
  const auto* base = reinterpret_cast<const char*>(builder.arena().data());
  const auto* items = reinterpret_cast<const cuda::WorkItem*>(base + builder.header().items);
  const auto* rows = reinterpret_cast<const cuda::ItemRow*>(base + builder.header().rows);
  std::map<std::pair<int32_t, int32_t>, int32_t> reads;
  std::set<std::tuple<int32_t, int32_t, int32_t, int32_t>> seen;  // query, KV head, tile
  for (int32_t i = 0; i < builder.num_items(); ++i) {
    const cuda::WorkItem& item = items[i];
    EXPECT((item.token_end - item.token_begin) * group <= cuda::kItemQueries[builder.item_shape()]);
    const TestSequence& sequence = batch[item.sequence];
    for (int32_t tile = item.tile_begin; tile < item.tile_end; ++tile) {
      const int32_t end = std::min(sequence.plan.kv_len(), (tile + 1) * kTileKeys);
      for (int32_t key = tile * kTileKeys; key < end; key += page_size) {
        ++reads[{sequence.pages[key / page_size], item.kv_head}];
      }
      for (int32_t t = item.token_begin; t < item.token_end; ++t) {
        const int32_t s = item.rows < 0 ? item.sequence : rows[item.rows + t].sequence;
        const int32_t token = item.rows < 0 ? t : rows[item.rows + t].token;
        EXPECT_EQ(batch[s].pages[tile * kTileKeys / page_size],
                  sequence.pages[tile * kTileKeys / page_size]);
        EXPECT(seen.insert({s, token, item.kv_head, tile}).second);
      }
    }
  }
  size_t expected = 0;
  for (const TestSequence& sequence : batch) {
    expected += size_t(sequence.plan.num_query_tokens) * kv_heads *
                ((sequence.plan.kv_len() + kTileKeys - 1) / kTileKeys);
  }
  EXPECT_EQ(seen.size(), expected);
  return reads;
}

int64_t Total(const std::map<std::pair<int32_t, int32_t>, int32_t>& reads) {
  int64_t total = 0;
  for (const auto& [page, count] : reads) total += count;
  return total;
}

}  // namespace

TEST(CudaPlanReadsSharedPagesOnce) {
  PagedLayer layer(Shape{8, 2, 8, 16}, DType::kFloat16, 2000, 1);
  const TestSequence parent(&layer, 1030, {}, 1, 1);
  std::vector<TestSequence> batch;
  for (int32_t i = 0; i < 6; ++i) batch.push_back(Fork(&layer, parent, 1030, 70, {}, 1));
  // Group 4: four of them fit 16 queries, but all fit 32, which saves more.
  const auto shared = CountReads(batch, 4, 2, 16, true);
  for (int32_t page = 0; page < 64; ++page) {
    for (int32_t head = 0; head < 2; ++head) {
      EXPECT_EQ((shared.at({parent.pages[page], head})), 1);
    }
  }
  // The negative control.
  const auto apart = CountReads(batch, 4, 2, 16, false);
  EXPECT_EQ((apart.at({parent.pages[0], 1})), 6);
  EXPECT_EQ(Total(apart) - Total(shared), 5 * 64 * 2);
  // Those with a page of their own in the middle share what comes before. 70 take three items of 32
  // queries: two of 64 would save less than an eighth of all tiles.
  batch[2].pages[40] = layer.TakePage();
  for (int32_t i = 6; i < 70; ++i) batch.push_back(Fork(&layer, parent, 1030, 1, {}, 1));
  const auto many = CountReads(batch, 1, 2, 16, true);
  EXPECT_EQ((many.at({parent.pages[39], 0})), 3);
  EXPECT_EQ((many.at({parent.pages[40], 0})), 3);
  EXPECT_EQ((many.at({batch[2].pages[40], 0})), 1);
}

TEST(CudaPlanSharesOnlyWhereItPays) {
  PagedLayer layer(Shape{8, 2, 8, 16}, DType::kFloat16, 2000, 1);
  const auto reads_first = [&](int32_t keys, int32_t sequences, int32_t queries) {
    const TestSequence parent(&layer, keys, {}, 1, 1);
    std::vector<TestSequence> batch;
    for (int32_t i = 0; i < sequences; ++i) {
      batch.push_back(Fork(&layer, parent, keys, 9, {}, queries));
    }
    return CountReads(batch, 4, 2, 16, true).at({parent.pages[0], 0});
  };
  EXPECT_EQ(reads_first(7 * 64, 2, 1), 2);   // saves seven tiles
  EXPECT_EQ(reads_first(8 * 64, 2, 1), 1);   // saves eight
  EXPECT_EQ(reads_first(2 * 64, 5, 1), 1);   // saves eight as well
  EXPECT_EQ(reads_first(8 * 64, 2, 8), 1);   // 64 queries
  EXPECT_EQ(reads_first(8 * 64, 2, 9), 2);   // 72 queries: each fills items alone
  EXPECT_EQ(reads_first(12 * 64, 3, 8), 2);  // two in one item, one alone
}

TEST(CudaSharedPrefixesOfEvictedOrWindowedSequencesAreReadByEach) {
  PagedLayer layer(Shape{4, 2, 64, 16}, DType::kFloat16, 900, 1);
  const TestSequence parent(&layer, 700, {}, 1, 1);
  std::vector<TestSequence> batch;
  for (int32_t i = 0; i < 4; ++i) batch.push_back(Fork(&layer, parent, 700, 20, {}, 2));
  for (int32_t key = 0; key < 720; ++key) batch[1].positions.push_back(key + (key > 300 ? 5 : 0));
  batch[1].plan.next_position = 725;
  batch[1].Link();
  const Mask window = Mask::Window(200, 3);
  const std::vector<const Mask*> masks = {nullptr, nullptr, &window, nullptr};
  const std::vector<float> slopes = {0.02f, 0.01f, 0.f, 0.05f};
  Options options;
  options.args.alibi_slopes = slopes.data();
  const std::vector<float> q = RandomQueries(&layer, batch);
  const Output output = AttendCuda(layer, batch, masks, q, options);
  EXPECT(ErrorOfBatch(layer, batch, masks, q, output, options.args) < 1);
  options.shares = false;
  const Output apart = AttendCuda(layer, batch, masks, q, options);
  EXPECT_EQ(apart.tiles - output.tiles, 2 * 10);  // of the first and the last
}

TEST(CudaAttentionOverSharedPrefixesAgreesWithFloat64) {
  const std::vector<float> slopes = {0.02f, 0.01f, 0.f, 0.05f, 0.1f, 0.03f};
  const std::vector<float> sinks = {0.f, 3.f, -40.f, 4.f, 1.f, -1.f};
  int32_t round = 0, shared_rounds = 0;
  for (const auto& [shape, dtype] : {std::pair{Shape{6, 2, 64, 16}, DType::kFloat16},
                                     {Shape{4, 4, 128, 8}, DType::kBFloat16},
                                     {Shape{6, 1, 80, 32}, DType::kFloat16},
                                     {Shape{2, 2, 64, 16}, DType::kFloat16},
                                     {Shape{4, 2, 24, 16}, DType::kFloat32}}) {
    for (int32_t again = 0; again < 2; ++again, ++round) {
      PagedLayer layer(shape, dtype, 2000, 11 + round);
      const auto random = [&](int32_t n) { return static_cast<int32_t>(layer.rng() % n); };
      // Forks of forks, at any key, whole pages or not, and one stranger.
      std::vector<TestSequence> batch;
      batch.emplace_back(&layer, 500 + random(200), std::vector<int32_t>{}, 1, 1);
      while (batch.size() < 7) {
        const TestSequence parent = batch[random(static_cast<int32_t>(batch.size()))];
        const int32_t queries = 1 + random(again == 0 ? 4 : 12);
        const int32_t shared = std::max(parent.plan.num_committed - random(150), 0);
        batch.push_back(Fork(
            &layer, parent, shared, random(90),
            random(2) == 0 ? RandomTree(&layer.rng, queries) : std::vector<int32_t>{}, queries));
      }
      batch.emplace_back(&layer, random(300), std::vector<int32_t>{}, 2, 2);
      std::shuffle(batch.begin(), batch.end(), layer.rng);
      Options options;
      options.plain = dtype == DType::kFloat32;
      options.num_blocks = 1 + random(40);
      if (round % 3 == 1) options.args.alibi_slopes = slopes.data();
      if (round % 3 == 2) options.args.sinks = sinks.data();
      const std::vector<float> q = RandomQueries(&layer, batch);
      const Output output = AttendCuda(layer, batch, {}, q, options);
      EXPECT(ErrorOfBatch(layer, batch, {}, q, output, options.args) < 1);
      options.shares = false;
      const Output apart = AttendCuda(layer, batch, {}, q, options);
      shared_rounds += output.tiles < apart.tiles;
      EXPECT(RelativeError(output.lse, apart.lse) < 1e-4);
    }
  }
  EXPECT(shared_rounds >= 8);
}

TEST(CudaSharedPrefixesInEveryOrderAndTheErrorOfAWrongPage) {
  PagedLayer layer(Shape{8, 2, 64, 16}, DType::kFloat16, 600, 5);
  const TestSequence parent(&layer, 700, {}, 1, 1);
  std::vector<TestSequence> batch;
  for (int32_t i = 0; i < 4; ++i) batch.push_back(Fork(&layer, parent, 700, 9 * i, {}, 1 + i % 2));
  const std::vector<float> q = RandomQueries(&layer, batch);
  Options options;
  options.num_blocks = 7;
  InEveryOrder([&] {
    const Output output = AttendCuda(layer, batch, {}, q, options);
    EXPECT(ErrorOfBatch(layer, batch, {}, q, output) < 1);
  });
  // The negative control: were a page read that one of them does not share, it would be seen.
  std::vector<TestSequence> other = batch;
  other[3].pages[20] = layer.TakePage();
  for (int32_t key = 0; key < 16; ++key) {
    layer.Copy(parent.pages[19], key, other[3].pages[20], key);
  }
  const Output output = AttendCuda(layer, other, {}, q, options);
  EXPECT(ErrorOfBatch(layer, other, {}, q, output) < 1);
  EXPECT(ErrorOfBatch(layer, batch, {}, q, output) > 1);
}

TEST(CudaSumsAndSelectedPagesOverSharedPrefixes) {
  PagedLayer layer(Shape{4, 2, 64, 16}, DType::kFloat16, 600, 5);
  const TestSequence parent(&layer, 640, {}, 1, 1);
  std::vector<TestSequence> batch;
  for (int32_t i = 0; i < 3; ++i) batch.push_back(Fork(&layer, parent, 640, 5 * i, {}, 2));
  const std::vector<float> q = RandomQueries(&layer, batch);
  int64_t keys = 0;
  for (const TestSequence& sequence : batch) keys += sequence.plan.kv_len();
  std::vector<float> want(keys * 4, 0.f);
  const AttentionMass mass{want.data(), 4, 1};
  Attend(layer, batch, {}, q, {}, &mass);
  Options options;
  options.num_blocks = 9;
  options.mass = {nullptr, 4, 1};
  const Output output = AttendCuda(layer, batch, {}, q, options);
  EXPECT(RelativeError(output.mass, want) < 2e-3);
  // Pages of its own for each sequence and head, though the plan shares them.
  std::vector<std::vector<int32_t>> pages;
  std::vector<const int32_t*> tables;
  for (const TestSequence& sequence : batch) {
    for (int32_t head = 0; head < 2; ++head) {
      pages.push_back(sequence.pages);
      for (size_t page = pages.size() % 3; page + 2 < sequence.pages.size(); page += 3) {
        pages.back()[page] = -1;
      }
    }
  }
  for (const std::vector<int32_t>& own : pages) tables.push_back(own.data());
  AttentionArgs args;
  args.head_pages = tables.data();
  options.mass = {};
  options.head_pages = &pages;
  for (const bool shares : {true, false}) {  // the kernel with tensor cores has no such plan
    options.head_pages_plain = options.shares = shares;
    const Output selected = AttendCuda(layer, batch, {}, q, options);
    EXPECT(RelativeError(selected.out, Attend(layer, batch, {}, q, args)) < 2e-3);
  }
}

}  // namespace kvctl
