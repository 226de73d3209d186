/*!
 * \file kernels/cpu/attention/attention_tile-inl.h
 * \brief Attention of a tile of queries to the keys of a chunk.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_TILE_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_TILE_INL_H_

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/cpu/attention/attention_ahead-inl.h"
#include "kernels/cpu/attention/attention_micro-inl.h"
#include "kernels/cpu/attention/attention_scratch-inl.h"
#include "kernels/cpu/attention/attention_shape-inl.h"

namespace kvctl {
namespace {

/*!
 * \brief Computes the partial result of each query: m, the largest score (times log2 e); l, the sum
 * of p = 2^(score - m); acc, the sum of p * v. T: element type of the pages.
 *
 * All of these depend only on the query and the keys that it sees in this chunk.
 */
template <typename T>
class TilePass {
 public:
  TilePass(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
           const KeyPositions& positions, int64_t value_offset, const Scratch& scratch)
      : args_(args),
        shape_(shape),
        unit_(unit),
        sequence_(args.sequences[unit.sequence]),
        plan_(args.masks.plan(unit.sequence, unit.kv_head)),
        positions_(positions),
        value_offset_(value_offset),
        block_query_(unit.token_begin / kBlockQueries * kBlockQueries),
        head_dim_(args.head_dim),
        head_offset_(int64_t(args.page_size) * args.head_dim),
        key_bytes_(args.head_dim * static_cast<int32_t>(sizeof(T))),
        per_token_(QueriesPerToken(shape, unit)),
        ahead_(args, shape, unit.num_heads, value_offset),
        plain_(args.soft_cap <= 0 && args.alibi_slopes == nullptr),
        s_(scratch) {}

  /*!
   * \brief Fills scratch m, l and acc for the queries of tokens [token_begin, token_end).
   * \param next The chunk to prefetch, or nullptr for none.
   */
  void Run(int32_t token_begin, int32_t token_end, const ChunkKeys& chunk, const ChunkKeys* next) {
    Score(token_begin, token_end, chunk, next);
    FoldLanes(MaxOp(), s_.lanes, num_queries_, s_.m);
    std::fill_n(s_.lanes, num_queries_ * kLanes, 0.f);
    std::fill_n(s_.acc, int64_t(num_queries_) * head_dim_, 0.f);
    for (int32_t block = 0; block < chunk.num_blocks; ++block) {
      for (int32_t query = 0; query < num_queries_; ++query) Exponentiate(query, block);
      WeighBlock(block, next);
    }
    FoldLanes(AddOp(), s_.lanes, num_queries_, s_.l);
  }

  /*! \brief Prefetches on the way, this many bytes with each panel and with each value. */
  void Prefetch(Fetcher* fetcher, int64_t panel_bytes, int64_t value_bytes) {
    fetcher_ = fetcher;
    panel_bytes_ = static_cast<int32_t>(panel_bytes);
    value_bytes_ = static_cast<int32_t>(value_bytes);
  }

  /*! \brief The first half of Run: scores, times log2 e, of the keys that Visible shows; -inf for
   * hidden keys of a block that a token sees in part. */
  void Score(int32_t token_begin, int32_t token_end, const ChunkKeys& chunk,
             const ChunkKeys* next) {
    chunk_ = &chunk;
    token_begin_ = token_begin;
    tokens_ = token_end - token_begin;
    num_queries_ = tokens_ * per_token_;
    stride_ = int64_t(chunk.num_blocks) * kTileKeys + kPadding;
    std::fill_n(s_.lanes, (num_queries_ + 3) / 4 * 4 * kLanes, kMinusInfinity);
    for (int32_t block = 0; block < chunk.num_blocks; ++block) ScoreBlock(block, next);
  }

  /*! \brief [tokens of the tile] the keys of a block that each token sees. */
  uint64_t* Visible(int32_t block) const {
    return s_.visible + int64_t(block) * shape_.tile_tokens;
  }

  float* Scores(int32_t block, int32_t query) const {
    return s_.scores + query * stride_ + int64_t(block) * kTileKeys;
  }

 private:
  const T* const* Keys(const ChunkKeys& chunk, int32_t block) const {
    return reinterpret_cast<const T* const*>(chunk.keys) + int64_t(block) * kTileKeys;
  }

  /*! \brief Finds the keys that each token sees, their scores, and the maxima. */
  void ScoreBlock(int32_t index, const ChunkKeys* next) {
    const KeyBlock& block = chunk_->blocks[index];
    uint64_t* visible = Visible(index);
    uint64_t any = 0, all = ~uint64_t{0};
    for (int32_t i = 0; i < tokens_; ++i) {
      visible[i] = block.present;
      if (block.words != MaskSpan::kAllQueries) {
        visible[i] &= plan_.words.data()[block.words + token_begin_ + i - block_query_];
      }
      any |= visible[i];
      all &= visible[i];
    }
    if (any == 0) return;
    const bool maxima = kScoresMaxima && plain_ && all == ~uint64_t{0};
    const int32_t queries = num_queries_ / unit_.num_heads;
    const int32_t batch = ahead_.batch();
    uintptr_t runs[kBatchKeys + 1];
    Fetcher fetcher;
    const bool fetch = next != nullptr && any == ~uint64_t{0};
    for (int32_t first = 0; first < kTileKeys; first += batch) {
      for (int32_t head = 0; head < unit_.num_heads; ++head) {
        const int32_t key = index * kTileKeys + first;
        if (fetch) fetcher = ahead_.Find(*chunk_, key, head, false, *next, 1, runs);
        const int32_t width = std::min(batch, kPanelKeys);
        for (int32_t c = first; c < first + batch; c += width) {
          const uint64_t bits = any >> c & LowestBits(width);
          if (bits == 0) continue;
          ScoreKeys(index, c, bits, head, queries, &fetcher, fetch ? width * key_bytes_ : 0,
                    maxima);
        }
      }
    }
    if (maxima) return;
    for (int32_t token = 0; token < tokens_; ++token) {
      for (int32_t head = 0; visible[token] != 0 && head < per_token_; ++head) {
        FindMaxima(index, token, head, visible[token]);
      }
    }
  }

  /*! \brief Scores of a head's queries with the keys of a panel, from key `first` of a block on,
   * that `bits` shows. They are final, and taken into the maxima, if so wanted. */
  void ScoreKeys(int32_t block, int32_t first, uint64_t bits, int32_t head, int32_t queries,
                 Fetcher* fetcher, int32_t bytes, bool maxima) const {
    if (fetcher_ != nullptr) {
      fetcher = fetcher_;
      bytes = panel_bytes_;
    }
    const float* panel = s_.panel;
    if (chunk_->panels != nullptr) {
      panel = chunk_->panels + (block * kTileKeys + first) / kPanelKeys * PanelFloats(head_dim_);
    } else {
      const int32_t first_bytes = bytes * kPanelQueries / (kPanelQueries + queries);
      WriteKeys(Keys(*chunk_, block) + first, bits, head * head_offset_, head_dim_, fetcher,
                first_bytes, s_.panel);
      bytes -= first_bytes;
    }
    const int64_t query = int64_t{token_begin_ - unit_.token_begin} * per_token_ + head * queries;
    ScoreQueries(s_.q + query * QueryFloats(head_dim_), queries, head_dim_, panel,
                 bits >> kLanes == 0, fetcher, bytes, Scores(block, head * queries) + first,
                 stride_, maxima ? s_.lanes + int64_t{head} * queries * kLanes : nullptr);
  }

  /*! \brief Finishes the scores of one query and block (-inf where hidden) and takes them into the
   * query's maxima. */
  void FindMaxima(int32_t block, int32_t token, int32_t head, uint64_t visible) const {
    const int32_t query = token * per_token_ + head;
    float* scores = Scores(block, query);
    float* maxima = s_.lanes + int64_t(query) * kLanes;
    Vec largest = Load(maxima);
    if (plain_ && visible == ~uint64_t{0}) {
      for (int32_t c = 0; c < kTileKeys; c += kLanes) largest = Max(Load(scores + c), largest);
      Store(maxima, largest);
      return;
    }
    for (int32_t c = 0; c < kTileKeys; c += kLanes) {
      const uint64_t bits = visible >> c & LowestBits(kLanes);
      Vec score = Set(kMinusInfinity);
      if (bits != 0) {
        score = Load(scores + c);
        if (!plain_) {
          const int32_t own = plan_.kv_len - plan_.num_query_tokens + token_begin_ + token;
          score = ShapeScores(args_, score, chunk_->positions + block * kTileKeys + c,
                              positions_.Of(own), unit_.kv_head * shape_.group + head);
        }
        score = Select(bits, score, Set(kMinusInfinity));
      }
      Store(scores + c, score);
      largest = Max(score, largest);
    }
    Store(maxima, largest);
  }

  /*! \brief Turns the scores of one query and block into weights p, and sums them by logical index
   * modulo kLanes. */
  void Exponentiate(int32_t query, int32_t index) {
    const int32_t token = query / per_token_;
    float* lanes = s_.lanes + int64_t(query) * kLanes;
    const uint64_t visible = Visible(index)[token];
    if (visible == 0) return;
    // Finite even if all scores are NaN or -inf, to distinguish it from a query that sees no key.
    s_.m[query] = std::max(s_.m[query], std::numeric_limits<float>::lowest());
    const Vec largest = Set(s_.m[query]);
    const KeyBlock& block = chunk_->blocks[index];
    float* p = Scores(index, query);
    Vec sums = Load(lanes);
    for (int32_t c = 0; c < kTileKeys; c += kLanes) {
      const Vec weight = Exp2(Sub(Load(p + c), largest));
      Store(p + c, weight);
      if (block.by_key) sums = Add(sums, weight);
    }
    Store(lanes, sums);
    if (block.by_key) return;
    for (uint64_t bits = visible; bits != 0; bits &= bits - 1) {
      const int32_t c = __builtin_ctzll(bits);
      const int32_t depth = sequence_.depths[block.first_key + c - sequence_.num_committed];
      lanes[(sequence_.num_committed + depth) % kLanes] += p[c];
    }
  }

  void WeighBlock(int32_t block, const ChunkKeys* next) {
    const uint64_t* visible = Visible(block);
    uint64_t any = 0, all = ~uint64_t{0};
    for (int32_t i = 0; i < tokens_; ++i) {
      any |= visible[i];
      all &= visible[i];
    }
    if (any == all) {
      WeighQueries(any, block, 0, num_queries_, any == ~uint64_t{0} ? next : nullptr);
      return;
    }
    // Together as far as all tokens see the same keys, then token by token: a hidden value may be
    // NaN, and zero times NaN is not zero.
    const uint64_t same = LowestBits(__builtin_ctzll(any ^ all));
    WeighQueries(any & same, block, 0, num_queries_, nullptr);
    for (int32_t i = 0; i < tokens_; ++i) {
      WeighQueries(visible[i] & ~same, block, i * per_token_, per_token_, nullptr);
    }
  }

  void WeighQueries(uint64_t visible, int32_t block, int32_t query, int32_t queries,
                    const ChunkKeys* next) const {
    if (visible == 0) return;
    const T* const* keys = Keys(*chunk_, block);
    float* weights = Scores(block, query);
    const T* chosen[kTileKeys];
    int32_t count = kTileKeys;
    if (visible != ~uint64_t{0}) {
      // The weights are not read after this.
      count = MoveTogether(visible, keys, chosen, weights, stride_, queries);
      keys = chosen;
    }
    queries /= unit_.num_heads;
    // At most what is prefetched, or that would come too late; many queries want more at once.
    const bool many = next != nullptr && unit_.num_heads == 1 && queries > kPanelQueries;
    const int32_t batches = many ? kTileKeys / ahead_.batch() : 1;
    const int32_t step = next != nullptr ? batches * ahead_.batch() : kTileKeys;
    uintptr_t runs[kTileKeys + 1];
    Fetcher own;
    Fetcher* fetcher = fetcher_ != nullptr ? fetcher_ : &own;
    const int32_t bytes = next != nullptr ? key_bytes_ : fetcher_ != nullptr ? value_bytes_ : 0;
    for (int32_t first = 0; first < count; first += step) {
      for (int32_t head = 0; head < unit_.num_heads; ++head) {
        if (next != nullptr) {
          own = ahead_.Find(*chunk_, block * kTileKeys + first, head, true, *next, batches, runs);
        }
        const int32_t head_query = query + head * queries;
        const float* weight = weights + head * queries * stride_ + first;
        AddValues(WeightedValues<T>{keys + first, value_offset_ + head * head_offset_,
                                    std::min(step, count - first), weight, stride_, fetcher, bytes},
                  queries, s_.acc + int64_t(head_query) * head_dim_, head_dim_);
      }
    }
  }

  const AttentionArgs& args_;
  const AttentionShape& shape_;
  const AttentionUnit& unit_;
  const SequencePlan& sequence_;
  const MaskPlan& plan_;
  const KeyPositions& positions_;
  const int64_t value_offset_;  // elements from a key to its value
  const int32_t block_query_;   // first token of the mask's block
  const int32_t head_dim_;
  const int64_t head_offset_;  // elements from a key to that of the next head
  const int32_t key_bytes_;
  const int32_t per_token_;  // queries
  const ReadAhead<T> ahead_;
  const bool plain_;  // scores are scaled dot products
  const Scratch& s_;
  const ChunkKeys* chunk_ = nullptr;
  int32_t token_begin_ = 0, tokens_ = 0, num_queries_ = 0;
  Fetcher* fetcher_ = nullptr;
  int32_t panel_bytes_ = 0, value_bytes_ = 0;
  int64_t stride_ = 0;  // of scores, from query to query
};

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_TILE_INL_H_
