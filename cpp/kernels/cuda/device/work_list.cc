#include "kernels/cuda/device/work_list.h"

#include <algorithm>

#include "core/mask/mask_plan.h"

namespace kvctl::cuda {
namespace {

/*! \brief Fewer tiles than this are not worth a work item and its partial results. */
constexpr int32_t kMinTiles = 4;

/*! \brief Tokens of an item: a power of two, so that it divides the blocks of the mask. */
int32_t TileTokens(const WorkLimits& limits) {
  int32_t tokens = 1;
  while (2 * tokens * limits.group <= limits.item_queries && 2 * tokens <= kBlockQueries) {
    tokens *= 2;
  }
  return tokens;
}

}  // namespace

void WorkList::Clear() {
  items_.clear();
  ranges_.clear();
  merges_.clear();
}

PlanClass WorkList::Add(const std::vector<QueryBlock>& blocks, const WorkLimits& limits) {
  PlanClass work{static_cast<int32_t>(items_.size()), 0, static_cast<int32_t>(merges_.size()), 0,
                 static_cast<int32_t>(ranges_.size())};
  AddUnits(blocks, limits);
  // Each block of the grid gets one range of `share` tiles, so that all end together; a unit is cut
  // only where a range ends.
  int64_t total = 0;
  for (const Unit& unit : units_) total += unit.tile_end - unit.tile_begin;
  const int64_t share =
      std::max<int64_t>(kMinTiles, (total + limits.num_blocks - 1) / limits.num_blocks);
  CutUnits(limits, share);
  AddMerges(limits);
  AddItems(limits, share, &work);
  work.num_items = static_cast<int32_t>(items_.size()) - work.first_item;
  work.num_merges = static_cast<int32_t>(merges_.size()) - work.first_merge;
  return work;
}

void WorkList::AddUnits(const std::vector<QueryBlock>& blocks, const WorkLimits& limits) {
  groups_.clear();
  units_.clear();
  const int32_t tile_tokens = TileTokens(limits);
  for (const QueryBlock& block : blocks) {
    for (int32_t first = 0; first < block.num_tokens; first += tile_tokens) {
      const auto group = static_cast<int32_t>(groups_.size());
      const int32_t begin = block.first_token + first;
      const int32_t end = begin + std::min(tile_tokens, block.num_tokens - first);
      const bool sees_sinks = block.sinks.num_tiles > 0;
      groups_.push_back({block.sequence, block.kv_head, begin, end, 0, sees_sinks});
      units_.push_back(
          {group, block.keys.begin, block.keys.end, 0, block.keys.num_tiles, false, 0, {}});
      if (!sees_sinks) continue;
      units_.push_back(
          {group, block.sinks.begin, block.sinks.end, 0, block.sinks.num_tiles, true, 0, {}});
    }
  }
}

void WorkList::CutUnits(const WorkLimits& limits, int64_t share) {
  int64_t before = 0;           // tiles of earlier units
  int64_t partial_queries = 0;  // because of cuts
  for (Unit& unit : units_) {
    Group& group = groups_[unit.group];
    const int64_t end = before + unit.tile_end - unit.tile_begin;
    unit.cuts = {unit.tile_begin};
    for (int64_t at = (before / share + 1) * share; at < end; at += share) {
      const auto cut = static_cast<int32_t>(unit.tile_begin + at - before);
      const bool worth =
          cut - unit.cuts.back() >= kMinTiles / 2 && unit.tile_end - cut >= kMinTiles / 2;
      if (worth) unit.cuts.push_back(cut);
    }
    const int64_t queries = int64_t{group.token_end - group.token_begin} * limits.group;
    const auto pieces = static_cast<int64_t>(unit.cuts.size());
    const int64_t results = pieces == 1 ? 0 : (pieces - group.always_merges) * queries;
    if (partial_queries + results > limits.max_partial_queries) {
      unit.cuts.resize(1);
    } else {
      partial_queries += results;
    }
    unit.first_piece = group.num_pieces;
    group.num_pieces += static_cast<int32_t>(unit.cuts.size());
    unit.cuts.push_back(unit.tile_end);
    before = end;
  }
}

void WorkList::AddMerges(const WorkLimits& limits) {
  int32_t partial_queries = 0;  // the classes use the same memory, one after another
  for (Group& group : groups_) {
    if (group.num_pieces == 1) continue;
    group.merge = static_cast<int32_t>(merges_.size());
    merges_.push_back({group.sequence, group.kv_head, group.token_begin, group.token_end,
                       partial_queries, group.num_pieces});
    partial_queries += group.num_pieces * (group.token_end - group.token_begin) * limits.group;
  }
}

void WorkList::AddItems(const WorkLimits& limits, int64_t share, PlanClass* work) {
  const auto num_items = [&] { return static_cast<int32_t>(items_.size()) - work->first_item; };
  int64_t before = 0;  // tiles of earlier units
  for (const Unit& unit : units_) {
    const Group& group = groups_[unit.group];
    const int32_t queries = (group.token_end - group.token_begin) * limits.group;
    for (size_t piece = 0; piece + 1 < unit.cuts.size(); ++piece) {
      WorkItem item{group.sequence,   group.kv_head,        group.token_begin,
                    group.token_end,  unit.span_begin,      unit.span_end,
                    unit.cuts[piece], unit.cuts[piece + 1], -1,
                    group.merge,      unit.at_sinks};
      if (group.merge >= 0) {
        item.partial = merges_[group.merge].partial +
                       (unit.first_piece + static_cast<int32_t>(piece)) * queries;
      }
      // A range has the items whose middle lies in it. Those of a block that has them all are
      // counted.
      const int64_t middle = before - unit.tile_begin + (item.tile_begin + item.tile_end) / 2;
      const int64_t owner = std::min<int64_t>(middle / share, limits.num_blocks - 1);
      while (static_cast<int64_t>(ranges_.size()) < work->first_range + owner + 1) {
        ranges_.push_back(num_items());
      }
      items_.push_back(item);
    }
    before += unit.tile_end - unit.tile_begin;
  }
  while (static_cast<int32_t>(ranges_.size()) < work->first_range + limits.num_blocks + 1) {
    ranges_.push_back(num_items());
  }
}

}  // namespace kvctl::cuda
