#include "kernels/cuda/device/work_list.h"

#include <algorithm>
#include <map>
#include <utility>

#include "core/mask/mask_plan.h"

namespace kvctl::cuda {
namespace {

/*! \brief Fewer tiles than this are not worth a work item and its partial results. */
constexpr int32_t kMinTiles = 4;

}  // namespace

int32_t TileTokens(int32_t group, int32_t item_queries) {
  int32_t tokens = 1;
  while (2 * tokens * group <= item_queries && 2 * tokens <= kBlockQueries) tokens *= 2;
  return tokens;
}

void WorkList::Clear() {
  items_.clear();
  ranges_.clear();
  merges_.clear();
  rows_.clear();
}

PlanClass WorkList::Add(const std::vector<QueryBlock>& blocks,
                        const std::vector<SharedTiles>& shared, const WorkLimits& limits) {
  PlanClass work{static_cast<int32_t>(items_.size()), 0, static_cast<int32_t>(merges_.size()), 0,
                 static_cast<int32_t>(ranges_.size())};
  AddUnits(blocks, shared, limits);
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

void WorkList::AddUnit(const BlockSpans& spans, int32_t group, int32_t tile_begin, bool at_sinks) {
  ++groups_[group].num_units;
  units_.push_back({static_cast<int32_t>(members_.size()),
                    1,
                    spans.begin,
                    spans.end,
                    tile_begin,
                    spans.num_tiles,
                    at_sinks,
                    {}});
  members_.push_back({group});
}

void WorkList::AddUnits(const std::vector<QueryBlock>& blocks,
                        const std::vector<SharedTiles>& shared, const WorkLimits& limits) {
  groups_.clear();
  members_.clear();
  units_.clear();
  const int32_t tile_tokens = TileTokens(limits.group, limits.item_queries);
  std::map<std::pair<int32_t, int32_t>, int32_t> sharing;  // groups, by sequence and KV head
  for (const QueryBlock& block : blocks) {
    if (block.shared_tiles > 0) {
      sharing[{block.sequence, block.kv_head}] = static_cast<int32_t>(groups_.size());
    }
    for (int32_t first = 0; first < block.num_tokens; first += tile_tokens) {
      const int32_t begin = block.first_token + first;
      groups_.push_back({block.sequence, block.kv_head, block.query_begin, begin,
                         begin + std::min(tile_tokens, block.num_tokens - first),
                         block.shared_tiles > 0});
    }
  }
  for (const SharedTiles& tiles : shared) {
    units_.push_back({static_cast<int32_t>(members_.size()),
                      static_cast<int32_t>(tiles.sequences.size()),
                      tiles.span_begin,
                      tiles.span_end,
                      tiles.begin,
                      tiles.end,
                      false,
                      {}});
    for (const int32_t sequence : tiles.sequences) {
      const int32_t group = sharing.at({sequence, tiles.kv_head});
      ++groups_[group].num_units;
      members_.push_back({group});
    }
  }
  int32_t group = 0;
  for (const QueryBlock& block : blocks) {
    for (int32_t first = 0; first < block.num_tokens; first += tile_tokens, ++group) {
      // Queries that see nothing have an item too: it writes zeros.
      if (block.shared_tiles == 0 || block.shared_tiles < block.keys.num_tiles) {
        AddUnit(block.keys, group, block.shared_tiles, false);
      }
      if (block.sinks.num_tiles > 0) AddUnit(block.sinks, group, 0, true);
    }
  }
}

void WorkList::CutUnits(const WorkLimits& limits, int64_t share) {
  const auto queries_of = [&](int32_t group) {
    return int64_t{groups_[group].token_end - groups_[group].token_begin} * limits.group;
  };
  int64_t before = 0;           // tiles of earlier units
  int64_t partial_queries = 0;  // because of cuts and shared pages
  for (size_t group = 0; group < groups_.size(); ++group) {
    if (groups_[group].shared) partial_queries += groups_[group].num_units * queries_of(group);
  }
  for (Unit& unit : units_) {
    const int64_t end = before + unit.tile_end - unit.tile_begin;
    unit.cuts = {unit.tile_begin};
    for (int64_t at = (before / share + 1) * share; at < end; at += share) {
      const auto cut = static_cast<int32_t>(unit.tile_begin + at - before);
      const bool worth =
          cut - unit.cuts.back() >= kMinTiles / 2 && unit.tile_end - cut >= kMinTiles / 2;
      if (worth) unit.cuts.push_back(cut);
    }
    Member* members = members_.data() + unit.first_member;
    const Group& first = groups_[members->group];
    const bool merges = first.shared || first.num_units > 1;  // the same for all members
    int64_t queries = 0;
    for (int32_t i = 0; i < unit.num_members; ++i) queries += queries_of(members[i].group);
    const auto pieces = static_cast<int64_t>(unit.cuts.size());
    const int64_t results = pieces == 1 ? 0 : (pieces - merges) * queries;
    if (partial_queries + results > limits.max_partial_queries) {
      unit.cuts.resize(1);
    } else {
      partial_queries += results;
    }
    for (int32_t i = 0; i < unit.num_members; ++i) {
      Group& group = groups_[members[i].group];
      members[i].first_piece = group.num_pieces;
      group.num_pieces += static_cast<int32_t>(unit.cuts.size());
    }
    unit.cuts.push_back(unit.tile_end);
    before = end;
  }
}

void WorkList::AddMerges(const WorkLimits& limits) {
  int32_t partial_queries = 0;  // the classes use the same memory, one after another
  for (Group& group : groups_) {
    if (group.num_pieces == 1 && !group.shared) continue;
    group.merge = static_cast<int32_t>(merges_.size());
    merges_.push_back({group.sequence, group.kv_head, group.token_begin, group.token_end,
                       partial_queries, group.num_pieces});
    partial_queries += group.num_pieces * (group.token_end - group.token_begin) * limits.group;
  }
}

void WorkList::AddRows(const Unit& unit, const WorkLimits& limits) {
  for (int32_t i = 0; i < unit.num_members; ++i) {
    const Member& member = members_[unit.first_member + i];
    const Group& group = groups_[member.group];
    const int32_t queries = (group.token_end - group.token_begin) * limits.group;
    const int32_t partial = merges_[group.merge].partial + member.first_piece * queries;
    for (int32_t token = group.token_begin; token < group.token_end; ++token) {
      rows_.push_back({group.query_begin + token, group.sequence, token, group.merge,
                       partial + token * limits.group, queries});
    }
  }
}

void WorkList::AddItems(const WorkLimits& limits, int64_t share, PlanClass* work) {
  const auto num_items = [&] { return static_cast<int32_t>(items_.size()) - work->first_item; };
  int64_t before = 0;  // tiles of earlier units
  for (const Unit& unit : units_) {
    const Member& member = members_[unit.first_member];
    const Group& group = groups_[member.group];
    const auto first_row = static_cast<int32_t>(rows_.size());
    if (unit.num_members > 1) AddRows(unit, limits);
    const int32_t num_rows = static_cast<int32_t>(rows_.size()) - first_row;
    const int32_t queries = (group.token_end - group.token_begin) * limits.group;
    for (int32_t piece = 0; piece + 1 < static_cast<int32_t>(unit.cuts.size()); ++piece) {
      WorkItem item{group.sequence,   group.kv_head,        group.token_begin,
                    group.token_end,  unit.span_begin,      unit.span_end,
                    unit.cuts[piece], unit.cuts[piece + 1], -1,
                    group.merge,      unit.at_sinks,        -1};
      if (unit.num_members > 1) {
        item.token_begin = 0;
        item.token_end = num_rows;
        item.partial = piece;
        item.merge = -1;
        item.rows = first_row;
      } else if (group.merge >= 0) {
        item.partial = merges_[group.merge].partial + (member.first_piece + piece) * queries;
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
