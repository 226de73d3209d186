// Attention over pages of 8-bit integers is that over the floats which they stand for, bit for bit.
#include <omp.h>

#include <cstring>
#include <vector>

#include "attention_case.h"
#include "check.h"
#include "kernels/attention.h"

namespace kvctl {

TEST(Int8PagesAttendAsTheFloatsThatTheyStandFor) {
  // Of one query and of many, in trees and chains, under masks, with any group and head dimension.
  for (const Shape shape :
       {Shape{6, 2, 64, 16}, Shape{4, 4, 32, 3}, Shape{8, 1, 80, 32}, Shape{3, 3, 128, 1},
        Shape{24, 2, 64, 16}, Shape{9, 9, 8, 5}, Shape{4, 2, 256, 16}}) {
    PagedLayer layer(shape, DType::kInt8, 4000, 5);
    const std::vector<int32_t> all = layer.free;
    for (int32_t trial = 0; trial < 12; ++trial) {
      layer.free = all;
      const RandomCase random(&layer, 900);
      const PagedLayer floats = layer.Dequantized();
      const int64_t width = shape.qo_heads * shape.head_dim;
      const auto q = layer.Random(random.sequence->plan.num_query_tokens * width);
      for (size_t m = 0; m <= random.masks.size(); ++m) {
        const Mask* mask = m == 0 ? nullptr : &random.masks[m - 1];
        std::vector<TestSequence> batch{*random.sequence};
        const std::vector<float> got = Attend(layer, batch, {mask}, q);
        const std::vector<float> want = Attend(floats, batch, {mask}, q);
        EXPECT(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST(Int8OptionsAndSumsAreThoseOfTheFloats) {
  const Shape shape{6, 2, 64, 16};
  PagedLayer layer(shape, DType::kInt8, 400, 9);
  const int64_t width = shape.qo_heads * shape.head_dim;
  const std::vector<float> slopes = layer.Random(shape.qo_heads, 0.1f);
  const std::vector<float> sinks = layer.Random(shape.qo_heads);
  for (const int32_t queries : {1, 7, 90}) {
    std::vector<TestSequence> batch{TestSequence(&layer, 700, {}, queries, queries)};
    const PagedLayer floats = layer.Dequantized();
    const std::vector<float> q = layer.Random(queries * width);
    AttentionArgs options;
    options.soft_cap = 20;
    options.alibi_slopes = slopes.data();
    options.sinks = sinks.data();
    const int64_t keys = 700 + queries;
    std::vector<float> got(keys * shape.kv_heads), want(keys * shape.kv_heads);
    const AttentionMass mass{got.data(), shape.kv_heads, 0},
        expected{want.data(), shape.kv_heads, 0};
    const std::vector<float> out = Attend(layer, batch, {}, q, options, &mass);
    EXPECT(out == Attend(floats, batch, {}, q, options, &expected));
    EXPECT(got == want);
  }
}

TEST(Int8TokensComeOutAsTheyWouldAlone) {
  const Shape shape{6, 2, 64, 16};
  PagedLayer layer(shape, DType::kInt8, 500, 11);
  const int64_t width = shape.qo_heads * shape.head_dim;
  const int before = omp_get_max_threads();
  for (const int32_t past : {0, 200, 700}) {
    const int32_t queries = 80;
    const TestSequence chain(&layer, past, {}, queries, queries);
    const std::vector<float> q = layer.Random(queries * width);
    std::vector<TestSequence> batch{chain};
    omp_set_num_threads(1);
    const std::vector<float> together = Attend(layer, batch, {}, q);
    for (const int threads : {2, 3}) {
      omp_set_num_threads(threads);
      EXPECT(Attend(layer, batch, {}, q) == together);
    }
    for (const int32_t query : {0, 1, 33, 79}) {
      EXPECT(ComesOutAlone(layer, chain, query, q, together));
    }
  }
  omp_set_num_threads(before);
}

TEST(ADifferentIntegerOrScaleChangesInt8Attention) {
  // The comparisons above would pass if attention read no page at all.
  const Shape shape{2, 1, 64, 16};
  PagedLayer layer(shape, DType::kInt8, 40, 13);
  std::vector<TestSequence> batch{TestSequence(&layer, 300, {}, 1, 1)};
  const std::vector<float> q = layer.Random(shape.qo_heads * shape.head_dim);
  const std::vector<float> before = Attend(layer, batch, {}, q);
  for (const int32_t part : {0, 1}) {
    for (const int32_t byte : {0, 63, 67}) {  // an integer, the last one, the scale's exponent
      PagedLayer other = layer;
      const int64_t row = (int64_t{batch[0].pages[5]} * 2 + part) * shape.page_size + 3;
      other.data[row * layer.row_bytes() + byte] ^= 1;
      EXPECT(Attend(other, batch, {}, q) != before);
    }
  }
}

}  // namespace kvctl
