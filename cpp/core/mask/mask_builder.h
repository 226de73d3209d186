/*!
 * \file core/mask/mask_builder.h
 * \brief Writes a MaskPlan tile by tile. Empty tiles are dropped and full ones merged.
 */
#ifndef KVCTL_CORE_MASK_MASK_BUILDER_H_
#define KVCTL_CORE_MASK_MASK_BUILDER_H_

#include <algorithm>
#include <cstdint>

#include "core/mask/mask_plan.h"

namespace kvctl {

inline int32_t NumTiles(int32_t keys) { return (keys + kTileKeys - 1) / kTileKeys; }

/*! \brief The lowest n bits, for n in [0, 64]. */
inline uint64_t LowBits(int32_t n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; }

/*! \brief Appends blocks to a plan. Tiles of a block come in ascending order. */
class MaskBuilder {
 public:
  MaskBuilder(MaskPlan* plan, int32_t num_query_tokens, int32_t kv_len) : plan_(plan) {
    plan->num_query_tokens = num_query_tokens;
    plan->kv_len = kv_len;
    plan->blocks.clear();
    plan->blocks.push_back(0);
    plan->spans.clear();
    plan->words.clear();
  }

  void EndBlock() { plan_->blocks.push_back(static_cast<int32_t>(plan_->spans.size())); }

  /*! \brief Tiles [begin, end) are visible to every query. */
  void AddFull(int32_t begin, int32_t end) {
    if (begin >= end) return;
    const int32_t first = begin * kTileKeys;
    const int32_t last = std::min(end * kTileKeys, plan_->kv_len);
    if (MaskSpan* previous = Previous(first, MaskSpan::kAllQueries)) {
      previous->end = last;
    } else {
      plan_->spans.push_back({first, last, MaskSpan::kAllQueries, MaskSpan::kByKey});
    }
  }

  /*! \brief Storage for one word per query, valid until the next call. Follow with CommitWords. */
  uint64_t* NewWords(int32_t queries) {
    plan_->words.resize(plan_->words.size() + queries);
    return plan_->words.data() + plan_->words.size() - queries;
  }

  /*! \brief Makes the last `queries` words those of tiles [begin, end). Bits beyond the last key
   * are ignored if the span ends in the last tile; otherwise all bits must be valid. */
  void CommitWords(int32_t begin, int32_t end, int32_t queries) {
    const int32_t offset = static_cast<int32_t>(plan_->words.size()) - queries;
    const uint64_t* words = plan_->words.data() + offset;
    const int32_t last = std::min(end * kTileKeys, plan_->kv_len);
    const uint64_t valid = LowBits(last - (end - 1) * kTileKeys);
    uint64_t any = 0, all = ~uint64_t{0};
    for (int32_t query = 0; query < queries; ++query) {
      any |= words[query];
      all &= words[query];
    }
    const bool one_tile = end - begin == 1;
    if ((one_tile ? any & valid : any) == 0) {
      plan_->words.resize(offset);
    } else if ((one_tile ? ~all & valid : ~all) == 0) {
      plan_->words.resize(offset);
      AddFull(begin, end);
    } else {
      AddWords(begin, end, queries);
    }
  }

  /*! \brief The same where neither every query nor none sees the tiles. */
  void AddWords(int32_t begin, int32_t end, int32_t queries) {
    const int32_t offset = static_cast<int32_t>(plan_->words.size()) - queries;
    const int32_t last = std::min(end * kTileKeys, plan_->kv_len);
    plan_->spans.push_back({begin * kTileKeys, last, offset, MaskSpan::kByKey});
  }

 private:
  MaskSpan* Previous(int32_t end, int32_t words) {
    if (static_cast<int32_t>(plan_->spans.size()) == plan_->blocks.back()) return nullptr;
    MaskSpan& span = plan_->spans.back();
    return span.end == end && span.words == words ? &span : nullptr;
  }

  MaskPlan* plan_;
};

/*! \brief Queries of block b of n queries: [64 b, 64 b + BlockSize(n, b)). */
inline int32_t BlockSize(int32_t num_query_tokens, int32_t block) {
  return std::min(kBlockQueries, num_query_tokens - block * kBlockQueries);
}

/*!
 * \brief A plan from key ranges.
 * \param offsets, ranges Query r sees ranges [offsets[r], offsets[r + 1]): sorted, disjoint, not
 * empty, within the keys.
 */
void PlanFromRanges(const int32_t* offsets, const KeyRange* ranges, int32_t num_query_tokens,
                    int32_t kv_len, MaskPlan* plan);

/*! \brief One bit for each of up to 64 bytes, set where the byte is not zero. */
uint64_t PackBytes(const uint8_t* bytes, int32_t count);

/*! \brief A plan from bits: query r sees key c if bytes[r * kv_len + c] is not zero. */
void PlanFromBytes(const uint8_t* bytes, int32_t num_query_tokens, int32_t kv_len, MaskPlan* plan);

/*! \brief Intersection, union and complement of plans whose spans are all kByKey. */
void IntersectPlans(const MaskPlan& a, const MaskPlan& b, MaskPlan* out);
void UnitePlans(const MaskPlan& a, const MaskPlan& b, MaskPlan* out);
void ComplementPlan(const MaskPlan& a, MaskPlan* out);

/*!
 * \brief Splits the spans in the pending region of a tree by the chunk of their logical indices.
 *
 * Siblings share a logical index, so that a token's sums run as if its path were the sequence.
 */
void AssignChunks(const SequencePlan& sequence, MaskPlan* plan);

}  // namespace kvctl

#endif  // KVCTL_CORE_MASK_MASK_BUILDER_H_
