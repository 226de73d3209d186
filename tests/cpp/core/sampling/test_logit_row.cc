// A piece of processed logits is the same wherever it is cut.
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "core/sampling/logit_row.h"
#include "core/sampling/sampling.h"

TEST(PiecesAreCutFromTheProcessedRow) {
  constexpr int kSize = 1000;
  std::mt19937 random(2);
  std::vector<float> logits(kSize);
  for (float& l : logits) l = std::normal_distribution<float>(0, 2)(random);
  std::vector<uint32_t> bits((kSize + 31) / 32);
  for (uint32_t& word : bits) word = static_cast<uint32_t>(random() | random());
  kvctl::Sampling sampling;
  sampling.repetition_penalty = 1.3;
  sampling.presence_penalty = 0.5;
  sampling.frequency_penalty = 0.25;
  sampling.logit_bias = {{700, 2.0f}, {3, -1.0f}, {700, 0.5f}, {999, 1.0f}};
  const std::vector<std::pair<int32_t, int32_t>> counts = {{700, 2}, {0, 1}, {512, 3}};

  std::vector<float> expected = logits;
  for (const auto& [token, bias] : sampling.logit_bias) expected[token] += bias;
  for (const auto& [token, count] : counts) {
    const double logit = expected[token];
    expected[token] =
        static_cast<float>((logit > 0 ? logit / 1.3 : logit * 1.3) - 0.5 - 0.25 * count);
  }
  for (int i = 0; i < kSize; ++i) {
    if ((bits[i / 32] >> (i % 32) & 1u) == 0) expected[i] = -INFINITY;
  }

  kvctl::RowInput row;
  row.values = logits.data();
  row.bitmask = bits.data();
  row.counts = &counts;
  kvctl::LogitRow processed(kvctl::ScalarVocabOps());
  processed.Load(row, sampling);
  for (int trial = 0; trial < 300; ++trial) {
    const int at = static_cast<int>(random() % kSize);
    const int n = 1 + static_cast<int>(random() % (kSize - at));
    std::vector<float> buffer(n);
    const float* piece = processed.Piece(at, n, buffer.data());
    for (int i = 0; i < n; ++i) EXPECT_EQ(piece[i], expected[at + i]);
  }
  for (int32_t token : {0, 3, 512, 700, 999}) EXPECT_EQ(processed[token], expected[token]);

  // Nothing to process: the caller's own memory.
  row.bitmask = nullptr;
  row.counts = nullptr;
  const kvctl::Sampling untouched;
  processed.Load(row, untouched);
  EXPECT_EQ(processed.Piece(10, 5, nullptr), logits.data() + 10);
  row.type = kvctl::DType::kFloat64;
  EXPECT_ERROR(processed.Load(row, untouched), kType, "float64 holds distributions");
}
