#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda_attention.h"

namespace kvctl {

TEST(CudaAttentionAgreesWithFloat64OverShapesAndLengths) {
  InEveryOrder([&] {
    for (const Shape shape :
         {Shape{8, 2, 64, 16}, Shape{4, 4, 128, 8}, Shape{6, 1, 64, 5}, Shape{2, 1, 256, 1}}) {
      for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
        PagedLayer layer(shape, dtype, 400, 7);
        const std::vector<int32_t> all = layer.free;
        for (const auto& [past, queries] :
             {std::pair{0, 1}, {0, 70}, {63, 2}, {130, 1}, {150, 17}}) {
          layer.free = all;
          const double error =
              ErrorOf(&layer, TestSequence(&layer, past, {}, queries, queries), nullptr);
          EXPECT_EQ(error < 1, true);
        }
      }
    }
  });
}

TEST(CudaAttentionOfHeadDimsThatAreNoPowersOfTwoAgreesWithFloat64) {
  for (const Shape shape : {Shape{8, 2, 80, 16}, Shape{4, 4, 96, 8}, Shape{6, 1, 112, 5}}) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      PagedLayer layer(shape, dtype, 600, 7);
      const std::vector<int32_t> all = layer.free;
      for (const auto& [past, queries] : {std::pair{0, 1}, {0, 70}, {63, 2}, {1300, 1}}) {
        layer.free = all;
        for (const int32_t blocks : {3, 40}) {  // many: partial results are merged
          Options options;
          options.num_blocks = blocks;
          layer.free = all;
          const TestSequence sequence(&layer, past, {}, queries, queries);
          EXPECT(ErrorOf(&layer, sequence, nullptr, options) < 1);
        }
      }
    }
  }
}

TEST(CudaPlainAttentionAgreesWithFloat64ForEveryTypeAndHeadDim) {
  InEveryOrder([&] {
    for (const auto& [shape, dtype] : {std::pair{Shape{4, 2, 64, 16}, DType::kFloat32},
                                       {Shape{6, 1, 128, 8}, DType::kFloat32},
                                       {Shape{2, 2, 256, 16}, DType::kFloat32},
                                       {Shape{3, 1, 8, 5}, DType::kFloat32},
                                       {Shape{4, 2, 72, 16}, DType::kFloat16},
                                       {Shape{4, 2, 160, 16}, DType::kBFloat16}}) {
      PagedLayer layer(shape, dtype, 400, 7);
      const std::vector<int32_t> all = layer.free;
      for (const auto& [past, queries] : {std::pair{0, 1}, {40, 30}, {330, 3}}) {
        layer.free = all;
        Options options;
        options.plain = true;
        options.num_blocks = past == 330 ? 20 : 3;
        const TestSequence sequence(&layer, past, RandomTree(&layer.rng, queries), queries,
                                    queries);
        EXPECT(ErrorOf(&layer, sequence, nullptr, options) < 1);
      }
    }
  });
}

TEST(CudaPlainAttentionUnderMasksAndOptionsAgreesWithFloat64) {
  PagedLayer layer(Shape{6, 2, 40, 16}, DType::kFloat32, 600, 3);
  const std::vector<int32_t> all = layer.free;
  const std::vector<float> slopes = {0.5f, 0.25f, 0.125f, 0.01f, 0.f, 1.f};
  const std::vector<float> sinks = {0.f, 3.f, -40.f, 40.f, 1.f, -1.f};
  Options options;
  options.plain = true;
  options.args.sm_scale = 0.2f;
  for (int32_t round = 0; round < 4; ++round) {
    layer.free = all;
    const RandomCase random(&layer, 300);
    options.num_blocks = 1 + static_cast<int32_t>(layer.rng() % 9);
    if (round == 1) options.args.soft_cap = 5.f;
    if (round == 2) options.args.alibi_slopes = slopes.data();
    if (round == 3) options.args.sinks = sinks.data();
    for (const Mask& mask : random.masks) {
      EXPECT(ErrorOf(&layer, *random.sequence, &mask, options) < 1);
    }
  }
}

TEST(CudaHeadsSeePagesOfTheirOwn) {
  InEveryOrder([&] {
    for (const int32_t queries : {3, 12, 20}) {  // rows of every shape of items
      PagedLayer layer(Shape{4, 2, 64, 16}, DType::kFloat16, 300, 9);
      std::vector<TestSequence> batch;
      batch.emplace_back(&layer, 300, std::vector<int32_t>{}, queries, queries);
      batch.emplace_back(&layer, 60, std::vector<int32_t>{}, 1, 1);
      std::vector<std::vector<int32_t>> pages;
      for (const TestSequence& sequence : batch) {
        for (int32_t head = 0; head < 2; ++head) {
          pages.push_back(sequence.pages);
          std::vector<int32_t>& own = pages.back();
          for (size_t page = head; page + 1 < own.size(); page += 2) own[page] = -1;
          // Whole steps without a key.
          for (size_t page = 0; head == 1 && page + 8 < own.size(); ++page) own[page] = -1;
        }
      }
      std::vector<const int32_t*> tables;
      for (const std::vector<int32_t>& own : pages) tables.push_back(own.data());
      const std::vector<float> q = Rounded(layer, layer.Random((queries + 1) * 4 * 64));
      for (const bool plain : {false, true}) {
        Options options;
        options.head_pages = &pages;
        options.head_pages_plain = plain;
        options.num_blocks = 9;
        const Output output = AttendCuda(layer, batch, {}, q, options);
        AttentionArgs args;
        args.head_pages = tables.data();
        EXPECT(RelativeError(output.out, Attend(layer, batch, {}, q, args)) < 2e-3);
      }
    }
  });
}

/*! \brief Whichever block comes last merges, in the order of the keys. */
TEST(CudaAttentionHasTheSameBitsInEveryOrderOfBlocks) {
  PagedLayer layer(Shape{8, 2, 64, 16}, DType::kFloat16, 200, 3);
  std::vector<TestSequence> batch;
  batch.emplace_back(&layer, 1300, std::vector<int32_t>{}, 2, 2);
  batch.emplace_back(&layer, 700, std::vector<int32_t>{}, 9, 9);
  const std::vector<float> q = Rounded(layer, layer.Random(11 * 8 * 64));
  Options options;
  options.num_blocks = 23;
  const Output first = AttendCuda(layer, batch, {}, q, options);
  for (int32_t round = 0; round < 3; ++round) {
    InEveryOrder([&] {
      const Output other = AttendCuda(layer, batch, {}, q, options);
      EXPECT(other.out == first.out && other.lse == first.lse);
    });
  }
}

TEST(CudaSumsOfWeightsAreThoseOfTheCpu) {
  // By the kernel with tensor cores, and by the plain one.
  for (const auto& [dtype, head_dim] : {std::pair{DType::kFloat16, 64},
                                        {DType::kFloat32, 64},
                                        {DType::kFloat16, 72},
                                        {DType::kBFloat16, 160}}) {
    PagedLayer layer(Shape{4, 2, head_dim, 16}, dtype, 300, 9);
    std::vector<TestSequence> batch;
    batch.emplace_back(&layer, 90, RandomTree(&layer.rng, 9), 9, 9);
    batch.emplace_back(&layer, 0, std::vector<int32_t>{}, 40, 40);
    const std::vector<float> q = Rounded(layer, layer.Random(49 * 4 * head_dim));
    const Mask window = Mask::Window(30, 2);
    for (const int32_t heads : {2, 4}) {
      for (const int32_t last : {0, 5}) {
        std::vector<float> want(139 * heads, 0.f);
        const AttentionMass mass{want.data(), heads, last};
        Attend(layer, batch, {nullptr, &window}, q, {}, &mass);
        Options options;
        options.plain = dtype == DType::kFloat32 || head_dim != 64;
        options.mass = {nullptr, heads, last};
        options.num_blocks = 20;
        const Output output = AttendCuda(layer, batch, {nullptr, &window}, q, options);
        EXPECT(RelativeError(output.mass, want) < Bound(dtype));
      }
    }
  }
}

TEST(CudaAttentionTakesTheLeastShapeOfWideHeadsThatFitsABlock) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    PagedLayer layer(Shape{2, 1, 256, 16}, dtype, 600, 3);
    const std::vector<int32_t> all = layer.free;
    // Rows of each shape of items; many blocks: results are merged.
    for (const auto& [past, queries, blocks] :
         {std::tuple{100, 5, 3}, {0, 16, 3}, {90, 40, 3}, {1300, 1, 40}}) {
      layer.free = all;
      const TestSequence sequence(&layer, past, RandomTree(&layer.rng, queries), queries, queries);
      Options options;
      options.num_blocks = blocks;
      EXPECT(ErrorOf(&layer, sequence, nullptr, options) < 1);
      options.shared_bytes = 99 * 1024;  // of 8.6, 8.9 and 12.x
      options.least_shape = 1;
      InEveryOrder([&] { EXPECT(ErrorOf(&layer, sequence, nullptr, options) < 1); });
      options.shared_bytes = 80 * 1024;
      options.least_shape = 0;
      options.plain = true;
      EXPECT(ErrorOf(&layer, sequence, nullptr, options) < 1);
    }
  }
}

TEST(CudaAttentionCutAlongTheKeysAgreesWithFloat64) {
  for (const Shape shape : {Shape{4, 1, 64, 16}, Shape{8, 1, 128, 32}, Shape{2, 1, 256, 16}}) {
    PagedLayer layer(shape, DType::kFloat16, 400, 7);
    const std::vector<int32_t> all = layer.free;
    for (const auto& [past, queries] : {std::pair{1300, 1}, {1100, 9}}) {
      layer.free = all;
      const TestSequence sequence(&layer, past, RandomTree(&layer.rng, queries), queries, queries);
      for (const int32_t blocks : {2, 7, 40}) {
        Options options;
        options.num_blocks = blocks;
        EXPECT(ErrorOf(&layer, sequence, nullptr, options) < 1);
      }
    }
  }
}

TEST(CudaAttentionIsTheSameWithTwoStagesAndThree) {
  InEveryOrder([&] {
    for (const int32_t queries : {1, 5, 8, 20}) {  // rows of every shape of items
      PagedLayer layer(Shape{8, 2, 64, 16}, DType::kFloat16, 100, 3);
      std::vector<TestSequence> batch;
      batch.emplace_back(&layer, 500, RandomTree(&layer.rng, queries), queries, queries);
      batch.emplace_back(&layer, 3, std::vector<int32_t>{}, 1, 1);
      const std::vector<float> q = Rounded(layer, layer.Random((queries + 1) * 8 * 64));
      Options options;
      options.num_blocks = 9;  // partial results are merged
      const Output three = AttendCuda(layer, batch, {nullptr, nullptr}, q, options);
      options.num_stages = 2;
      const Output two = AttendCuda(layer, batch, {nullptr, nullptr}, q, options);
      EXPECT(two.out == three.out && two.lse == three.lse);
      MaskPlan plan;
      LowerMask(nullptr, batch[0].plan, &plan);
      const std::vector<float> own(three.out.begin(), three.out.begin() + queries * 8 * 64);
      EXPECT(RelativeError(own, Reference(layer, batch[0], plan, q.data())) < 2e-3);
    }
  });
}

TEST(CudaAttentionLoadsTheNextItemsQueriesOnlyWhereNoThreadReads) {
  // A block merges 16 rows, whose warps share the keys, and goes on with 36, whose warps do not.
  const int32_t past = 1300;
  PagedLayer layer(Shape{4, 1, 64, 16}, DType::kFloat16, 200, 3);
  std::vector<TestSequence> batch;
  batch.emplace_back(&layer, past, std::vector<int32_t>{}, 4, 4);
  batch.emplace_back(&layer, past, std::vector<int32_t>{}, 9, 9);
  const std::vector<float> q = Rounded(layer, layer.Random(13 * 4 * 64));
  const std::vector<float> want = Attend(layer, batch, {}, q, {});
  InEveryOrder([&] {
    const Output output = AttendCuda(layer, batch, {}, q, {});
    EXPECT(RelativeError(output.out, want) < 2e-3);
  });
}

TEST(CudaAttentionUnderRandomMasksAgreesWithFloat64) {
  PagedLayer layer(Shape{6, 2, 64, 16}, DType::kBFloat16, 600, 3);
  const std::vector<int32_t> all = layer.free;
  for (int32_t round = 0; round < 6; ++round) {
    layer.free = all;
    const RandomCase random(&layer, 400);
    Options options;
    options.num_blocks = 1 + static_cast<int32_t>(layer.rng() % 9);
    for (const Mask& mask : random.masks) {
      EXPECT(ErrorOf(&layer, *random.sequence, &mask, options) < 1);
    }
  }
}

TEST(CudaAttentionOfABatchWithOptionsAgreesWithFloat64) {
  PagedLayer layer(Shape{6, 2, 64, 16}, DType::kFloat16, 300, 5);
  TestSequence evicted(&layer, 180, RandomTree(&layer.rng, 9), 9, 9);
  for (int32_t c = 0; c < 180; ++c) evicted.positions.push_back(c < 40 ? c : c + 500);
  evicted.plan.next_position = 680;
  evicted.Link();
  const std::vector<float> slopes = {0.5f, 0.25f, 0.125f, 0.01f, 0.f, 1.f};
  const std::vector<float> sinks = {0.f, 3.f, -40.f, 40.f, 1.f, -1.f};
  Options options;
  options.args.sm_scale = 0.2f;
  EXPECT(ErrorOf(&layer, evicted, nullptr, options) < 1);
  options.args.soft_cap = 5.f;
  EXPECT(ErrorOf(&layer, evicted, nullptr, options) < 1);
  options.args.alibi_slopes = slopes.data();
  InEveryOrder([&] { EXPECT(ErrorOf(&layer, evicted, nullptr, options) < 1); });
  options.args.sinks = sinks.data();
  options.num_blocks = 30;
  EXPECT(ErrorOf(&layer, evicted, nullptr, options) < 1);
  for (const DType out : {DType::kFloat16, DType::kBFloat16}) {
    options.out = out;
    EXPECT(ErrorOf(&layer, evicted, nullptr, options) < 1.5);
  }
}

TEST(CudaAttentionOfABatchIsThatOfEachSequenceAlone) {
  PagedLayer layer(Shape{4, 2, 64, 16}, DType::kFloat16, 300, 9);
  std::vector<TestSequence> batch;
  batch.emplace_back(&layer, 100, RandomTree(&layer.rng, 12), 12, 7);
  batch.emplace_back(&layer, 0, std::vector<int32_t>{}, 70, 70);
  batch.emplace_back(&layer, 333, std::vector<int32_t>{}, 1, 1);
  const Mask window = Mask::Window(50, 3);
  const std::vector<float> q = Rounded(layer, layer.Random(78 * 4 * 64));
  const Output together = AttendCuda(layer, batch, {nullptr, nullptr, &window}, q, {});
  int64_t at = 0;
  for (size_t s = 0; s < batch.size(); ++s) {
    const int64_t size = int64_t{batch[s].plan.num_query_tokens} * 4 * 64;
    MaskPlan plan;
    LowerMask(s == 2 ? &window : nullptr, batch[s].plan, &plan);
    const std::vector<float> own(together.out.begin() + at, together.out.begin() + at + size);
    EXPECT(RelativeError(own, Reference(layer, batch[s], plan, q.data() + at)) < 2e-3);
    at += size;
  }
}

TEST(CudaQueriesThatSeeNothingAreZeroAndHiddenPagesMayHoldAnything) {
  PagedLayer layer(Shape{4, 2, 64, 16}, DType::kFloat16, 300, 9);
  TestSequence sequence(&layer, 200, {}, 3, 3);
  const Mask nothing = ~(Mask::Causal() | ~Mask::Causal());
  std::vector<TestSequence> batch{sequence};
  const std::vector<float> q = Rounded(layer, layer.Random(3 * 4 * 64));
  Output output = AttendCuda(layer, batch, {&nothing}, q, {});
  for (float value : output.out) EXPECT_EQ(value, 0.f);
  for (float value : output.lse) EXPECT_EQ(value, -INFINITY);
  const Mask window = Mask::Window(20, 4);
  const Output before = AttendCuda(layer, batch, {&window}, q, {});
  for (int32_t key = 4; key < 180; ++key) {  // not 0-3: sinks
    const std::vector<float> poison(64, NAN);
    for (int32_t head = 0; head < 2; ++head) {
      layer.Set(sequence.pages[key / 16], 0, head, key % 16, poison.data());
      layer.Set(sequence.pages[key / 16], 1, head, key % 16, poison.data());
    }
  }
  for (int32_t page = 1; page < 10; ++page) sequence.pages[page] = -1;
  batch = {sequence};
  output = AttendCuda(layer, batch, {&window}, q, {});
  EXPECT(output.out == before.out);
}

TEST(CudaLseIsTheLogOfTheSumOfExponentials) {
  PagedLayer layer(Shape{2, 1, 64, 4}, DType::kFloat16, 200, 5);
  TestSequence sequence(&layer, 399, {}, 1, 1);
  std::vector<float> key = layer.Random(64);
  const std::vector<float> q = Rounded(layer, layer.Random(128));
  key = Rounded(layer, key);
  for (int32_t c = 0; c < 400; ++c) layer.Set(sequence.pages[c / 4], 0, 0, c % 4, key.data());
  Options options;
  options.args.sm_scale = 0.25f;
  std::vector<TestSequence> batch{sequence};
  for (const int32_t blocks : {1, 20}) {
    options.num_blocks = blocks;
    const Output output = AttendCuda(layer, batch, {}, q, options);
    for (int32_t head = 0; head < 2; ++head) {
      double score = 0;
      for (int32_t d = 0; d < 64; ++d) score += 0.25 * double{q[head * 64 + d]} * key[d];
      EXPECT(std::abs(output.lse[head] - (score + std::log(400.0))) < 1e-4);
    }
  }
}

}  // namespace kvctl
