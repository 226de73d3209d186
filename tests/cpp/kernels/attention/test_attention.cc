#include <omp.h>

#include <algorithm>
#include <cstring>

#include "attention_case.h"
#include "check.h"
#include "kernels/attention.h"

namespace kvctl {
namespace {

/*! \brief Kernel against reference for one sequence. */
double ErrorOf(PagedLayer* layer, TestSequence sequence, const Mask* mask,
               AttentionArgs options = {}) {
  const std::vector<float> q = layer->Random(int64_t(sequence.plan.num_query_tokens) *
                                             layer->shape.qo_heads * layer->shape.head_dim);
  std::vector<TestSequence> batch{sequence};
  const std::vector<float> out = Attend(*layer, batch, {mask}, q, options);
  MaskPlan plan;
  LowerMask(mask, sequence.plan, &plan);
  return RelativeError(out, Reference(*layer, sequence, plan, q.data(), options));
}

}  // namespace

TEST(AttentionAgreesWithFloat64OverShapesAndLengths) {
  for (const Shape shape :
       {Shape{6, 2, 64, 16}, Shape{4, 4, 32, 8}, Shape{8, 1, 128, 32}, Shape{2, 2, 256, 1},
        Shape{7, 1, 80, 5}, Shape{9, 3, 40, 16}, Shape{10, 5, 64, 16}, Shape{24, 2, 64, 16}}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      PagedLayer layer(shape, dtype, 400, 7);
      const std::vector<int32_t> all = layer.free;
      for (const auto& [past, queries] :
           {std::pair{0, 1}, {0, 70}, {1, 3}, {63, 2}, {255, 1}, {300, 17}}) {
        const double error =
            ErrorOf(&layer, TestSequence(&layer, past, {}, queries, queries), nullptr);
        EXPECT_EQ(error < 1e-6, true);
        layer.free = all;
      }
    }
  }
}

TEST(AttentionUnderRandomMasksAgreesWithFloat64) {
  PagedLayer layer(Shape{6, 2, 32, 16}, DType::kFloat32, 600, 3);
  const std::vector<int32_t> all = layer.free;
  for (int32_t round = 0; round < 30; ++round) {
    layer.free = all;
    const RandomCase random(&layer, 700);
    for (const Mask& mask : random.masks) {
      EXPECT(ErrorOf(&layer, *random.sequence, &mask) < 1e-6);
    }
  }
}

TEST(AttentionOverTreesAgreesWithFloat64) {
  PagedLayer layer(Shape{}, DType::kFloat32, 500, 11);
  for (const int32_t past : {0, 250, 255, 500}) {
    TestSequence sequence(&layer, past, RandomTree(&layer.rng, 40), 40, 25);
    EXPECT(ErrorOf(&layer, sequence, nullptr) < 1e-6);
  }
}

TEST(OptionsOfAttentionAgreeWithFloat64) {
  PagedLayer layer(Shape{}, DType::kFloat32, 300, 5);
  const std::vector<float> slopes = {0.5f, 0.25f, 0.125f, 0.01f, 0.f, 1.f};
  const std::vector<float> sinks = {0.f, 3.f, -40.f, 40.f, 1.f, -1.f};
  for (const int32_t queries : {9, 1}) {
    TestSequence sequence(&layer, 280, RandomTree(&layer.rng, queries), queries, queries);
    for (int32_t c = 0; c < 280; ++c) sequence.positions.push_back(c < 40 ? c : c + 500);
    sequence.plan.next_position = 780;
    sequence.Link();
    AttentionArgs options;
    options.sm_scale = 0.4f;
    EXPECT(ErrorOf(&layer, sequence, nullptr, options) < 1e-6);
    options.soft_cap = 5.f;
    EXPECT(ErrorOf(&layer, sequence, nullptr, options) < 5e-6);
    options.soft_cap = 0.f;
    options.alibi_slopes = slopes.data();
    EXPECT(ErrorOf(&layer, sequence, nullptr, options) < 5e-6);
    options.sinks = sinks.data();
    EXPECT(ErrorOf(&layer, sequence, nullptr, options) < 5e-6);
    options.soft_cap = 5.f;
    EXPECT(ErrorOf(&layer, sequence, nullptr, options) < 5e-6);
  }
}

TEST(LseIsTheLogOfTheSumOfExponentials) {
  // Equal keys: every score is s, so that lse = s + log(keys).
  Shape shape{2, 1, 32, 4};
  PagedLayer layer(shape, DType::kFloat32, 200, 5);
  TestSequence sequence(&layer, 399, {}, 1, 1);
  const std::vector<float> key = layer.Random(32), q = layer.Random(64);
  for (int32_t c = 0; c < 400; ++c) layer.Set(sequence.pages[c / 4], 0, 0, c % 4, key.data());
  std::vector<float> lse(2);
  AttentionArgs options;
  options.lse = lse.data();
  options.sm_scale = 0.25f;
  std::vector<TestSequence> batch{sequence};
  Attend(layer, batch, {}, q, options);
  for (int32_t head = 0; head < 2; ++head) {
    double score = 0;
    for (int32_t d = 0; d < 32; ++d) score += 0.25 * double{q[head * 32 + d]} * key[d];
    EXPECT(std::abs(lse[head] - (score + std::log(400.0))) < 1e-5);
  }
  const Mask nothing = ~(Mask::Causal() | ~Mask::Causal());
  EXPECT_EQ(Attend(layer, batch, {&nothing}, q, options)[0], 0.f);
  EXPECT_EQ(lse[1], -INFINITY);
}

// The guarantee of attention.h: a token's output is bitwise the same ...

TEST(TokensOfATreeComeOutAsTheyWouldAlone) {
  for (const Shape shape : {Shape{6, 2, 64, 16}, Shape{4, 4, 32, 3}, Shape{8, 1, 80, 32}}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      PagedLayer layer(shape, dtype, 4000, 17);
      const std::vector<int32_t> all = layer.free;
      for (const int32_t past : {0, 30, 250, 505}) {
        layer.free = all;
        const int32_t nodes = 50;
        std::vector<int32_t> parents = RandomTree(&layer.rng, nodes);
        for (int32_t i = 1; i < 12; ++i) parents[i] = i - 1;  // one long path among short ones
        const TestSequence tree(&layer, past, parents, nodes, nodes);
        const int64_t width = shape.qo_heads * shape.head_dim;
        const std::vector<float> q = layer.Random(nodes * width);
        std::vector<TestSequence> batch{tree};
        const std::vector<float> together = Attend(layer, batch, {}, q);
        for (const int32_t node : {0, 5, 11, 30, 49}) {
          std::vector<int32_t> path;
          for (int32_t n = node; n >= 0; n = parents[n]) path.insert(path.begin(), past + n);
          for (int32_t key = past - 1; key >= 0; --key) path.insert(path.begin(), key);
          std::vector<TestSequence> alone{TestSequence(&layer, tree, path)};
          const std::vector<float> own(q.begin() + node * width, q.begin() + (node + 1) * width);
          EXPECT(std::memcmp(Attend(layer, alone, {}, own).data(), &together[node * width],
                             width * sizeof(float)) == 0);
        }
      }
    }
  }
}

TEST(TokensOfAChainComeOutAsTheyWouldAlone) {
  // A unit of a single token has several KV heads: eleven are split into six and five.
  for (const Shape shape :
       {Shape{9, 3, 64, 16}, Shape{22, 11, 32, 8}, Shape{6, 3, 80, 5}, Shape{24, 2, 64, 16}}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
      PagedLayer layer(shape, dtype, 500, 19);
      const std::vector<int32_t> all = layer.free;
      const int64_t width = shape.qo_heads * shape.head_dim;
      for (const int32_t past : {0, 200, 700}) {
        layer.free = all;
        const int32_t queries = 80;
        const TestSequence chain(&layer, past, {}, queries, queries);
        const std::vector<float> q = layer.Random(queries * width);
        std::vector<TestSequence> batch{chain};
        const std::vector<float> together = Attend(layer, batch, {}, q);
        for (const int32_t query : {0, 1, 33, 79}) {
          TestSequence alone = chain;
          alone.plan.num_committed = alone.plan.next_position = past + query;
          alone.plan.num_query_tokens = alone.plan.num_pending = 1;
          std::vector<TestSequence> one{alone};
          const std::vector<float> own(q.begin() + query * width, q.begin() + (query + 1) * width);
          EXPECT(std::memcmp(Attend(layer, one, {}, own).data(), &together[query * width],
                             width * sizeof(float)) == 0);
        }
      }
    }
  }
}

TEST(NeitherTheBatchNorTheThreadsChangeABit) {
  const Shape shape{6, 2, 64, 16};
  PagedLayer layer(shape, DType::kFloat16, 2000, 23);
  const int64_t width = shape.qo_heads * shape.head_dim;
  const Mask window = Mask::Window(100, 3);
  std::vector<TestSequence> batch;
  std::vector<const Mask*> masks;
  std::vector<float> q;
  for (const auto& [past, queries] : {std::pair{900, 1}, {3, 5}, {1500, 12}, {0, 1}, {600, 70}}) {
    const bool tree = queries == 12;
    batch.emplace_back(&layer, past,
                       tree ? RandomTree(&layer.rng, queries) : std::vector<int32_t>{}, queries,
                       queries);
    masks.push_back(queries == 5 ? &window : nullptr);
    const std::vector<float> own = layer.Random(queries * width);
    q.insert(q.end(), own.begin(), own.end());
  }
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::vector<float> together = Attend(layer, batch, masks, q);
  for (const int threads : {1, 2, 3, 8}) {
    omp_set_num_threads(threads);
    EXPECT(Attend(layer, batch, masks, q) == together);
    int64_t query = 0;
    for (size_t s = 0; s < batch.size(); ++s) {
      const int64_t queries = batch[s].plan.num_query_tokens;
      std::vector<TestSequence> one{batch[s]};
      const std::vector<float> own(q.begin() + query * width,
                                   q.begin() + (query + queries) * width);
      const std::vector<float> alone = Attend(layer, one, {masks[s]}, own);
      EXPECT(std::equal(alone.begin(), alone.end(), together.begin() + query * width));
      query += queries;
    }
  }
  omp_set_num_threads(before);
}

TEST(SharedPagesChangeNoBit) {
  // Forks of forks on the same pages, each followed by its own tokens, and an unrelated sequence.
  // Each is compared with its output alone.
  const Shape shape{6, 2, 64, 16};
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    PagedLayer layer(shape, dtype, 1000, 37);
    const int64_t width = shape.qo_heads * shape.head_dim;
    const TestSequence prefix(&layer, 1000, {}, 0, 0);
    const auto fork = [&](int32_t shared_keys, int32_t past, int32_t queries, bool tree) {
      TestSequence own(&layer, past,
                       tree ? RandomTree(&layer.rng, queries) : std::vector<int32_t>{}, queries,
                       queries);
      for (int32_t i = 0; i < shared_keys / 16; ++i) own.pages[i] = prefix.pages[i];
      own.Link();
      return own;
    };
    std::vector<TestSequence> batch{fork(800, 850, 1, false), fork(800, 1100, 5, true),
                                    fork(0, 300, 3, false),   fork(300, 330, 1, false),
                                    fork(520, 600, 4, false), fork(800, 850, 40, true)};
    const Mask window = Mask::Window(200, 270);  // all of the first chunk, a part of the next ones
    std::vector<const Mask*> masks(batch.size(), nullptr);
    int64_t queries = 0;
    for (const TestSequence& sequence : batch) queries += sequence.plan.num_query_tokens;
    const std::vector<float> q = layer.Random(queries * width);
    const int before = omp_get_max_threads();
    for (const Mask* mask : {static_cast<const Mask*>(nullptr), &window}) {
      masks[4] = mask;
      for (const int threads : {1, 2, 5}) {
        omp_set_num_threads(threads);
        const std::vector<float> together = Attend(layer, batch, masks, q);
        int64_t query = 0;
        for (size_t s = 0; s < batch.size(); ++s) {
          const int64_t count = batch[s].plan.num_query_tokens;
          std::vector<TestSequence> one{batch[s]};
          const std::vector<float> own(q.begin() + query * width,
                                       q.begin() + (query + count) * width);
          const std::vector<float> alone = Attend(layer, one, {masks[s]}, own);
          EXPECT(std::equal(alone.begin(), alone.end(), together.begin() + query * width));
          query += count;
        }
      }
    }
    omp_set_num_threads(before);
  }
}

TEST(SumsOfWeightsAgreeWithFloat64) {
  const Shape shape{6, 2, 64, 16};
  const int32_t group = 3;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
    PagedLayer layer(shape, dtype, 1000, 41);
    const int64_t width = shape.qo_heads * shape.head_dim;
    std::vector<TestSequence> batch{TestSequence(&layer, 500, {}, 70, 70),
                                    TestSequence(&layer, 250, RandomTree(&layer.rng, 20), 20, 12)};
    const Mask window = Mask::Window(90, 4);
    const std::vector<const Mask*> masks{&window, nullptr};
    const std::vector<float> q = layer.Random(82 * width);
    const std::vector<float> sinks = {0.f, 1.f, -2.f, 0.5f, 3.f, 0.f};
    for (const int32_t last_queries : {0, 5}) {
      for (const int32_t heads : {2, 6}) {
        std::vector<double> want;
        int32_t query = 0;
        for (size_t s = 0; s < 2; ++s) {
          MaskPlan plan;
          LowerMask(masks[s], batch[s].plan, &plan);
          const int32_t queries = batch[s].plan.num_query_tokens, keys = batch[s].plan.kv_len();
          std::vector<double> sums(int64_t{keys} * heads, 0.0);
          for (int32_t r = 0; r < queries; ++r, ++query) {
            if (last_queries > 0 && r < queries - last_queries) continue;
            for (int32_t head = 0; head < 6; ++head) {
              std::vector<double> weights(keys, 0.0);
              double total = std::exp(sinks[head]);
              for (int32_t c = 0; c < keys; ++c) {
                if (!plan.Visible(r, c)) continue;
                double score = 0;
                for (int32_t d = 0; d < 64; ++d) {
                  score += q[query * width + head * 64 + d] *
                           layer.Get(batch[s].pages[c / 16], 0, head / group, c % 16, d);
                }
                total += weights[c] = std::exp(score / 8);
              }
              for (int32_t c = 0; c < keys; ++c) {
                sums[int64_t{c} * heads + (heads == 2 ? head / group : head)] += weights[c] / total;
              }
            }
          }
          want.insert(want.end(), sums.begin(), sums.end());
        }
        const int before = omp_get_max_threads();
        std::vector<float> first;
        for (const int threads : {1, 3}) {
          omp_set_num_threads(threads);
          std::vector<float> sums(want.size(), 1.f);  // the sums are added to it
          const AttentionMass mass{sums.data(), heads, last_queries};
          AttentionArgs options;
          options.sinks = sinks.data();
          Attend(layer, batch, masks, q, options, &mass);
          for (float& sum : sums) sum -= 1;
          EXPECT(RelativeError(sums, want) < 2e-6);
          if (first.empty()) first = sums;
          EXPECT(first == sums);
        }
        omp_set_num_threads(before);
      }
    }
  }
}

TEST(WhatIsHiddenMayBeAnything) {
  // Each query sees every third key. K and V of another third hold NaN or infinity, and the pages
  // of the last third do not exist. Every third query then sees the poison.
  const Shape shape{4, 2, 64, 1};
  PagedLayer layer(shape, DType::kFloat32, 1000, 29);
  const int32_t past = 330, queries = 12, keys = past + queries;
  TestSequence sequence(&layer, past, {}, queries, queries);
  std::vector<uint8_t> bits(queries * keys);
  for (int32_t r = 0; r < queries; ++r) {
    for (int32_t c = 0; c < keys; ++c) bits[r * keys + c] = c % 3 == r % 3;
  }
  const Mask mask = Mask::Full(bits.data(), queries, keys);
  const int64_t width = shape.qo_heads * shape.head_dim;
  const std::vector<float> q = layer.Random(queries * width);
  std::vector<TestSequence> batch{sequence};
  const std::vector<float> clean = Attend(layer, batch, {&mask}, q);
  for (int32_t c = 0; c < keys; ++c) {
    const std::vector<float> poison(64, c % 2 == 0 ? NAN : INFINITY);
    for (int32_t i = 0; c % 3 == 1 && i < 4; ++i) {
      layer.Set(sequence.pages[c], i / 2, i % 2, 0, poison.data());
    }
    if (c % 3 == 2) batch[0].pages[c] = -1;
  }
  batch[0].Link();
  const std::vector<float> poisoned = Attend(layer, batch, {&mask}, q);
  for (int32_t r = 0; r < queries; ++r) {
    for (int64_t i = r * width; i < (r + 1) * width; ++i) {
      if (r % 3 == 0) EXPECT(poisoned[i] == clean[i]);
      if (r % 3 == 1) EXPECT(std::isnan(poisoned[i]));
      if (r % 3 == 2) EXPECT(poisoned[i] == 0.f);  // no visible key has a page
    }
  }
}

TEST(AttentionReadsQueriesOutOfAFusedTensor) {
  const Shape shape{4, 2, 32, 16};
  PagedLayer layer(shape, DType::kFloat16, 50, 31);
  const TestSequence sequence(&layer, 20, {}, 3, 3);
  std::vector<TestSequence> batch{sequence};
  std::vector<float> q = layer.Random(3 * 4 * 32);
  std::vector<Float16> fused(3 * 8 * 32, Float16{0x7e00}), out(3 * 5 * 32);
  for (int32_t r = 0; r < 3; ++r) {
    for (int32_t i = 0; i < 128; ++i) {
      FromFloat(q[r * 128 + i], &fused[r * 256 + i]);
      q[r * 128 + i] = ToFloat(fused[r * 256 + i]);
    }
  }
  const std::vector<float> want = Attend(layer, batch, {}, q);

  StepPlan step;
  step.sequences = {batch[0].plan};
  MaskTable table;
  table.Lower(nullptr, step, 1, 2);
  AttentionWorkspace workspace;
  AttentionArgs args;
  args.q = fused.data();
  args.q_dtype = args.kv_dtype = args.out_dtype = DType::kFloat16;
  args.q_row_stride = 256;
  args.num_qo_heads = 4;
  args.pages = layer.data.data();
  args.num_kv_heads = 2;
  args.page_size = 16;
  args.head_dim = 32;
  args.sequences = step.sequences.data();
  args.num_sequences = 1;
  args.masks = table.layer(0);
  args.out = out.data();
  args.out_row_stride = 160;
  args.sm_scale = 1.f / std::sqrt(32.f);
  args.workspace = &workspace;
  AttentionCpu(args);
  for (int32_t r = 0; r < 3; ++r) {
    for (int32_t i = 0; i < 128; ++i) {
      Float16 half;
      FromFloat(want[r * 128 + i], &half);
      EXPECT_EQ(out[r * 160 + i].bits, half.bits);
    }
    EXPECT_EQ(out[r * 160 + 128].bits, 0);
  }

  args.head_dim = 36;
  EXPECT_ERROR(AttentionCpu(args), kValue, "multiple of 8 in [8, 256], got 36");
  args.head_dim = 32;
  args.num_qo_heads = 3;
  EXPECT_ERROR(AttentionCpu(args), kValue, "multiple of num_kv_heads, got 3 and 2");
}

}  // namespace kvctl
