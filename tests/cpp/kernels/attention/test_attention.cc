#include <omp.h>

#include <algorithm>

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
