/*!
 * \file kernels/cuda/device/work_list.h
 * \brief Divides attention into work items, so that all blocks of a grid end together.
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_WORK_LIST_H_
#define KVCTL_KERNELS_CUDA_DEVICE_WORK_LIST_H_

#include <cstdint>
#include <vector>

#include "kernels/cuda/device/plan_layout.h"

namespace kvctl::cuda {

/*! \brief Spans of a mask's block, and the tiles of keys that they touch. */
struct BlockSpans {
  int32_t begin = 0, end = 0, num_tiles = 0;
};

/*! \brief A sequence's queries in one block of a mask, for one KV head. */
struct QueryBlock {
  int32_t sequence, kv_head, query_begin, first_token, num_tokens;
  BlockSpans keys;
  BlockSpans sinks;      //!< what they see of renumbered sinks
  int32_t shared_tiles;  //!< the first of its tiles, which it reads together with others
};

/*! \brief Tiles that all queries of several sequences see, on the same pages. */
struct SharedTiles {
  int32_t kv_head, begin, end;
  int32_t span_begin, span_end;
  std::vector<int32_t> sequences;  //!< whose queries fit one item together; each has one QueryBlock
};

/*! \brief What the items of a step depend on beside its queries and keys. */
struct WorkLimits {
  int32_t group;         //!< query heads of a KV head
  int32_t item_queries;  //!< the most queries of an item
  int32_t num_blocks;    //!< of the grid
  /*! \brief Capacity for the partial results of items that are cut along their keys. What
   * renumbered sinks need comes on top: at most two results for each query. */
  int32_t max_partial_queries;
};

/*! \brief Tokens of a sequence in an item: a power of two, so that it divides the blocks of the
 * mask. */
int32_t TileTokens(int32_t group, int32_t item_queries);

/*! \brief The work items of all classes of masks. Storage is reused from step to step. */
class WorkList {
 public:
  void Clear();
  /*! \brief Adds the items of a class. */
  PlanClass Add(const std::vector<QueryBlock>& blocks, const std::vector<SharedTiles>& shared,
                const WorkLimits& limits);

  const std::vector<WorkItem>& items() const { return items_; }
  const std::vector<int32_t>& ranges() const { return ranges_; }
  const std::vector<MergeItem>& merges() const { return merges_; }
  const std::vector<ItemRow>& rows() const { return rows_; }

 private:
  /*! \brief Queries whose results end up in one place. */
  struct Group {
    int32_t sequence, kv_head, query_begin, token_begin, token_end;
    bool shared;
    int32_t num_units = 0, num_pieces = 0;
    int32_t merge = -1;
  };
  struct Member {
    int32_t group, first_piece = 0;  // of the group's pieces
  };
  /*! \brief Tiles of keys that the queries of a group see, or of several that share them. */
  struct Unit {
    int32_t first_member, num_members;
    int32_t span_begin, span_end, tile_begin, tile_end;
    bool at_sinks;
    std::vector<int32_t> cuts;  // where its pieces begin, and the end
  };

  void AddUnits(const std::vector<QueryBlock>& blocks, const std::vector<SharedTiles>& shared,
                const WorkLimits& limits);
  void AddUnit(const BlockSpans& spans, int32_t group, int32_t tile_begin, bool at_sinks);
  void CutUnits(const WorkLimits& limits, int64_t share);
  void AddMerges(const WorkLimits& limits);
  void AddItems(const WorkLimits& limits, int64_t share, PlanClass* work);
  void AddRows(const Unit& unit, const WorkLimits& limits);

  std::vector<WorkItem> items_;
  std::vector<int32_t> ranges_;
  std::vector<MergeItem> merges_;
  std::vector<ItemRow> rows_;
  std::vector<Group> groups_;  // of one class, as is what follows
  std::vector<Member> members_;
  std::vector<Unit> units_;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_WORK_LIST_H_
