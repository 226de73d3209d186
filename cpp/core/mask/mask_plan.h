/*!
 * \file core/mask/mask_plan.h
 * \brief A mask as attention reads it: for each block of queries, the spans of keys that some query
 * may see.
 *
 * Keys are grouped in tiles of 64, with one 64-bit word per query; queries in blocks of 64. Keys
 * that all queries of a block see, or that none sees, take no words: the size of a plan depends on
 * the mask's structure, not on its length.
 */
#ifndef KVCTL_CORE_MASK_MASK_PLAN_H_
#define KVCTL_CORE_MASK_MASK_PLAN_H_

#include <cstdint>
#include <vector>

#include "core/cache/step_plan.h"
#include "kvctl/mask.h"

namespace kvctl {

constexpr int32_t kTileKeys = 64;
constexpr int32_t kBlockQueries = 64;
/*! \brief Attention sums over chunks of this many logical positions, and merges chunks in order. */
constexpr int32_t kChunkKeys = 256;

/*! \brief Keys that at least one query of a block may see. */
struct MaskSpan {
  static constexpr int32_t kAllQueries = -1;
  static constexpr int32_t kByKey = -1;

  int32_t begin;  //!< first key, a multiple of kTileKeys unless `chunk` is given
  int32_t end;    //!< one past the last key
  /*! \brief kAllQueries, or where the block's words begin in MaskPlan::words: bit b of a query's
   * word says whether the query sees key 64 * t + b, the same for each tile t that the span
   * touches. */
  int32_t words;
  /*! \brief kByKey: logical index = key. Otherwise the span is part of one tile with pending tokens
   * of a tree, and the logical indices of its visible keys lie in this chunk. */
  int32_t chunk;
};

/*! \brief The lowered mask of one sequence. Spans of a block: ascending chunk, then key. */
struct MaskPlan {
  int32_t num_query_tokens = 0;
  int32_t kv_len = 0;
  std::vector<int32_t> blocks;  //!< [num_blocks + 1] spans of block b: [blocks[b], blocks[b + 1])
  std::vector<MaskSpan> spans;
  std::vector<uint64_t> words;
  std::vector<uint64_t> scratch;  //!< of LowerMask, kept for reuse

  int32_t num_blocks() const { return static_cast<int32_t>(blocks.size()) - 1; }
  /*! \brief Whether a query may see a key. A linear search, for tests and pictures. */
  bool Visible(int32_t query, int32_t key) const;
};

/*!
 * \brief Lowers a mask for one sequence of a step. Reuses the plan's storage: lowering causal or
 * tree masks into a plan that held one before does not allocate.
 *
 * \param mask nullptr: causal, along the sequence's parents where it has them.
 * \param sequence Where its mask holds a Tree, `parents` and `depths` must come from that tree.
 * \throws kValue if the mask does not fit the sequence (another number of new tokens, keys
 * beyond the cache, a tree of another size); the plan is then unspecified.
 */
void LowerMask(const Mask* mask, const SequencePlan& sequence, MaskPlan* plan);

/*! \brief The masks of one layer: MaskPlan of (sequence s, KV head h) is plan(s, h). */
struct LayerMasks {
  const MaskPlan* plans = nullptr;  //!< [num_sequences, num_head_classes]
  int32_t num_head_classes = 1;
  const int32_t* head_classes = nullptr;  //!< [num_kv_heads], nullptr where there is one class

  const MaskPlan& plan(int32_t sequence, int32_t kv_head) const {
    return plans[sequence * num_head_classes + (head_classes ? head_classes[kv_head] : 0)];
  }
};

/*! \brief The lowered masks of a step, by sequence, layer and KV head. Storage is reused from step
 * to step. */
class MaskTable {
 public:
  /*!
   * \brief Lowers the masks of all sequences.
   *
   * \param masks One per sequence of the plan, nullptr = causal; or masks itself is nullptr: all
   * causal.
   * \throws kValue as LowerMask does, with the sequence's index in the message, and if a PerLayer /
   * PerHead mask has another number of layers / heads. The table is then unspecified until the next
   * Lower.
   */
  void Lower(const Mask* const* masks, const StepPlan& step, int32_t num_layers,
             int32_t num_kv_heads);

  /*! \brief The masks of a layer; valid until the next Lower. */
  LayerMasks layer(int32_t layer) const;

 private:
  int32_t num_sequences_ = 0;
  int32_t num_head_classes_ = 1;
  std::vector<int32_t> layer_classes_;  // empty: one class
  std::vector<int32_t> head_classes_;   // empty: one class
  std::vector<MaskPlan> plans_;         // [layer class][sequence][head class]; never shrinks
};

}  // namespace kvctl

#endif  // KVCTL_CORE_MASK_MASK_PLAN_H_
