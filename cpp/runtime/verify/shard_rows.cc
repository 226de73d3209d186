#include "runtime/verify/shard_rows.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/sampling/sampling.h"
#include "core/sampling/softmax_row.h"
#include "kernels/sampling.h"
#include "kvctl/sampling.h"

namespace kvctl {
namespace {

constexpr int32_t kElsewhere = -1;
constexpr int32_t kUnknown = -2;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FloatOf(int64_t bits) {
  const auto narrow = static_cast<uint32_t>(bits);
  float value;
  std::memcpy(&value, &narrow, sizeof(value));
  return value;
}

/*! \brief One row of a worker. */
LogitRow RowAt(const ShardRows& shard, int64_t row, const VocabContext& vocab,
               const Sampling& plain) {
  RowInput input{};
  input.values = shard.logits + row * shard.columns;
  LogitRow logits(vocab.ops());
  logits.Load(input, plain);
  return logits;
}

void LargestOfBlocks(const VocabContext& vocab, const LogitRow& logits, int64_t* out) {
  for (int32_t block = 0; block < vocab.num_blocks(); ++block) {
    float buffer[kVocabBlock];
    const int32_t at = VocabContext::Begin(block), n = vocab.block_size(block);
    const float* piece = logits.Piece(at, n, buffer);
    const float top = vocab.ops().max(piece, n);
    out[2 * block] = BitsOf(top);
    out[2 * block + 1] = top == -kInfinity ? 0 : at + vocab.ops().find(piece, n, top);
  }
}

}  // namespace

int64_t ShardRows::blocks() const { return (columns + kVocabBlock - 1) / kVocabBlock; }

void SumShardRows(const ShardRows& shard, int64_t* out) {
  const VocabContext vocab(static_cast<int32_t>(shard.columns), CpuVocabOps());
  const Sampling plain;
  SoftmaxRow sums;
  for (int64_t row = 0; row < shard.rows; ++row, out += 2 * shard.blocks()) {
    const LogitRow logits = RowAt(shard, row, vocab, plain);
    if (shard.temperatures[row] == 0) {
      LargestOfBlocks(vocab, logits, out);
      continue;
    }
    sums.Sum(vocab, logits, SoftmaxScale(shard.temperatures[row]));
    for (int32_t block = 0; block < vocab.num_blocks(); ++block) {
      out[2 * block] = sums.exponents()[block];
      out[2 * block + 1] = static_cast<int64_t>(sums.block_sums()[block]);
    }
  }
}

void SampleShardRows(const ShardRows& shard, const int64_t* sums, int64_t workers, int64_t worker,
                     const ShardStreams& streams, int32_t* tokens) {
  const int64_t blocks = shard.blocks();
  const VocabContext vocab(static_cast<int32_t>(shard.columns), CpuVocabOps());
  const Sampling plain;
  // Sums of a row whose blocks lie on two workers would not be its own.
  const bool cuts_blocks = workers > 1 && shard.columns % kVocabBlock != 0;
  std::vector<int32_t> exponents(workers * blocks);
  std::vector<uint64_t> weights(workers * blocks);
  for (int64_t row = 0; row < shard.rows; ++row) {
    const auto entry = [&](int64_t index) {
      return sums + 2 * ((index / blocks * shard.rows + row) * blocks + index % blocks);
    };
    if (shard.temperatures[row] == 0) {
      float best = -kInfinity;
      tokens[row] = kUnknown;
      for (int64_t i = 0; i < workers * blocks; ++i) {
        const float top = FloatOf(entry(i)[0]);
        if (!(top > best)) continue;
        best = top;
        tokens[row] = static_cast<int32_t>(i / blocks * shard.columns + entry(i)[1]);
      }
      continue;
    }
    for (int64_t i = 0; i < workers * blocks; ++i) {
      exponents[i] = static_cast<int32_t>(entry(i)[0]);
      weights[i] = static_cast<uint64_t>(entry(i)[1]);
    }
    const RandomStream stream = {streams.seed, static_cast<uint64_t>(streams.request_ids[row])};
    const auto position = static_cast<uint32_t>(streams.positions[row]);
    const auto chosen = ChooseBlock(exponents, weights, stream.Bits(Purpose::kToken, position, 0));
    if (!chosen || cuts_blocks) {
      tokens[row] = kUnknown;
      continue;
    }
    tokens[row] = kElsewhere;
    if (chosen->block / blocks != worker) continue;
    const LogitRow logits = RowAt(shard, row, vocab, plain);
    const int32_t at =
        TokenInBlock(vocab, logits, SoftmaxScale(shard.temperatures[row]), exponents[chosen->block],
                     static_cast<int32_t>(chosen->block % blocks), chosen->rest);
    tokens[row] = static_cast<int32_t>(worker * shard.columns + at);
  }
}

}  // namespace kvctl
