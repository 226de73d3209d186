// The guarantee of kernels/attention.h: a token's output is bitwise the same alone, in a chain, on
// a tree path, in any batch and with any number of threads; and hidden keys do not enter it.
#include <omp.h>

#include <algorithm>
#include <cstring>

#include "attention_case.h"
#include "check.h"
#include "kernels/attention.h"

namespace kvctl {

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
          EXPECT(ComesOutAlone(layer, chain, query, q, together));
        }
      }
    }
  }
}

static void CheckBatchesAndThreads(DType dtype) {
  const Shape shape{6, 2, 64, 16};
  PagedLayer layer(shape, dtype, 2000, 23);
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

TEST(NeitherTheBatchNorTheThreadsChangeABit) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kInt8}) {
    CheckBatchesAndThreads(dtype);
  }
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

TEST(AChunkMayHaveNoPages) {
  // Of the first two chunks a page selector leaves out all: the same as when they are hidden.
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kInt8}) {
    const Shape shape{4, 1, 64, 16};
    PagedLayer layer(shape, dtype, 100, 31);
    const int64_t width = shape.qo_heads * shape.head_dim;
    for (const int32_t queries : {1, 20}) {
      TestSequence sequence(&layer, 600, {}, queries, queries);
      const std::vector<float> q = layer.Random(queries * width);
      std::vector<uint8_t> bits(queries * (600 + queries), 1);
      for (int32_t r = 0; r < queries; ++r) {
        std::fill_n(bits.begin() + r * (600 + queries), 512, 0);
        for (int32_t c = r + 1; c < queries; ++c) bits[r * (600 + queries) + 600 + c] = 0;
      }
      const Mask mask = Mask::Full(bits.data(), queries, 600 + queries);
      std::vector<TestSequence> batch{sequence};
      const std::vector<float> hidden = Attend(layer, batch, {&mask}, q);
      std::fill_n(batch[0].pages.begin(), 512 / 16, -1);
      batch[0].Link();
      EXPECT(Attend(layer, batch, {}, q) == hidden);
      for (int32_t page : sequence.pages) layer.free.push_back(page);
    }
  }
}

}  // namespace kvctl
