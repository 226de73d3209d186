/*!
 * \file kernels/cuda/device/plan_layout.h
 * \brief The parts of a step's plan as they lie in the arena that CUDA kernels read.
 *
 * Kernels get only the arena's address and find everything through its header, so that a launch
 * recorded in a CUDA graph runs on the step that is in the arena when the graph is replayed.
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_PLAN_LAYOUT_H_
#define KVCTL_KERNELS_CUDA_DEVICE_PLAN_LAYOUT_H_

#include <cstdint>

#include "core/mask/mask_plan.h"

namespace kvctl::cuda {

/*! \brief The most queries of a work item: (token, query head of the KV head) pairs. */
constexpr int32_t kMaxItemQueries = 64;
/*! \brief The queries of a work item in a step, by its shape: the least that the sequence with most
 * has place in. With fewer, warps share the keys instead of the queries. */
constexpr int32_t kNumItemShapes = 3;
constexpr int32_t kItemQueries[kNumItemShapes] = {16, 32, kMaxItemQueries};

/*! \brief The start of the arena: counts, and the offsets of the parts in bytes from the header. */
struct PlanHeader {
  int32_t num_query_tokens;
  int32_t slots;       //!< [num_query_tokens] int32
  int32_t positions;   //!< [num_query_tokens] int32
  int32_t rope;        //!< [num_query_tokens, rotary_dim] float: cosines, then sines
  int32_t sequences;   //!< [num_sequences] PlanSequence
  int32_t spans;       //!< PlanSpan
  int32_t words;       //!< uint64
  int32_t classes;     //!< [layer classes] PlanClass
  int32_t items;       //!< WorkItem
  int32_t merges;      //!< MergeItem
  int32_t arrivals;    //!< [merges] int32, 0: the partial results that have been written
  int32_t item_shape;  //!< the items are for kItemQueries[item_shape] queries
  /*! \brief [num_layers] int32, the class of each layer's masks: not a kernel's argument, since a
   * later step's masks may differ in other layers than those of the step that was recorded. */
  int32_t layer_classes;
  int32_t ranges;  //!< int32, see PlanClass
  /*! \brief [num_query_tokens, rotary_dim] float: of q as it looks at renumbered sinks. */
  int32_t sink_rope;
  int32_t sink_positions;  //!< [num_query_tokens] int32: the positions from which it does
  int32_t has_sinks;       //!< whether some items are of queries at renumbered sinks
  int32_t rows;            //!< ItemRow
  /*! \brief Set on the device by a replayed append that does not fit the plan: attention after it
   * does nothing, since its blocks are made for other items. */
  int32_t misfit;
};

/*! \brief SequencePlan; arrays as byte offsets from the header, -1 for none. */
struct PlanSequence {
  int32_t query_begin, num_query_tokens, num_committed, kv_len, next_position;
  int32_t page_table, depths, committed_positions;
};

/*! \brief MaskSpan. */
struct PlanSpan {
  int32_t begin, end;
  int32_t words;         //!< index of the block's first word, or MaskSpan::kAllQueries
  int32_t tiles_before;  //!< tiles of the block's earlier spans
  uint64_t any;          //!< keys of a tile that some query of the block sees
};

/*!
 * \brief Tiles [tile_begin, tile_end) of the spans of one group of queries; or of several
 * sequences' queries, whose tokens are then counted over those sequences.
 */
struct WorkItem {
  int32_t sequence, kv_head;       //!< of several sequences: one of those that share the pages
  int32_t token_begin, token_end;  //!< within the sequence's new tokens, in one block of the mask
  int32_t span_begin, span_end;    //!< of the block
  int32_t tile_begin, tile_end;    //!< counted over the block's spans
  /*! \brief Its first partial result, or -1: writes the output. Of several sequences: which piece
   * of the tiles it is. */
  int32_t partial;
  int32_t merge;     //!< of all MergeItems, where it has a partial result
  int32_t at_sinks;  //!< whether q is that which looks at renumbered sinks
  int32_t rows;      //!< of several sequences: the ItemRow of the first token, else -1
};

/*! \brief A token of an item of several sequences. */
struct ItemRow {
  int32_t row;                    //!< its query in the batch
  int32_t sequence, token;        //!< token: within the sequence's new tokens
  int32_t merge;                  //!< of all MergeItems
  int32_t partial, piece_stride;  //!< its first partial result is partial + piece * piece_stride
};

/*! \brief Partial results to merge: num_partials runs, one result per query of the item, from
 * `partial` on. */
struct MergeItem {
  int32_t sequence, kv_head;
  int32_t token_begin, token_end;
  int32_t partial, num_partials;
};

/*!
 * \brief The items and merges of the layers of one class of masks.
 *
 * Block b of the grid has the items from ranges[first_range + b] to ranges[first_range + b + 1],
 * counted from first_item.
 */
struct PlanClass {
  int32_t first_item, num_items, first_merge, num_merges, first_range;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_PLAN_LAYOUT_H_
