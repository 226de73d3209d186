// From a mask expression to a plan for one sequence.
#include <algorithm>

#include "core/mask/mask_builder.h"
#include "core/mask/mask_node.h"
#include "core/mask/mask_positions.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

/*! \brief Row r sees the columns up to its own. */
void PlanCausalChain(const SequencePlan& sequence, MaskPlan* plan) {
  const int32_t num_columns = sequence.num_columns();
  MaskBuilder builder(plan, sequence.num_rows, num_columns);
  for (int32_t begin = 0; begin < sequence.num_rows; begin += kBlockRows) {
    const int32_t rows = std::min(kBlockRows, sequence.num_rows - begin);
    const int32_t own = num_columns - sequence.num_rows + begin;  // column of the block's first row
    int32_t tile = (own + 1) / kTileColumns;
    builder.AddFull(0, tile);
    for (; tile * kTileColumns < own + rows; ++tile) {
      uint64_t* words = builder.NewWords(rows);
      for (int32_t row = 0; row < rows; ++row) {
        words[row] = LowBits(std::clamp(own + row + 1 - tile * kTileColumns, 0, kTileColumns));
      }
      builder.CommitWords(tile, tile + 1, rows);
    }
    builder.EndBlock();
  }
}

/*! \brief Row r sees the committed columns, its ancestors and itself. */
void PlanAncestors(const SequencePlan& sequence, const int32_t* parents, MaskPlan* plan) {
  const int32_t num_columns = sequence.num_columns();
  const int32_t first_tile = sequence.num_committed / kTileColumns;
  const int32_t shift = sequence.num_committed % kTileColumns;
  const int32_t row_words = NumTiles(num_columns) - first_tile;
  std::vector<uint64_t>& seen = plan->scratch;  // [num_pending, row_words]
  seen.resize(int64_t(sequence.num_pending) * row_words);
  for (int32_t node = 0; node < sequence.num_pending; ++node) {
    uint64_t* row = seen.data() + int64_t(node) * row_words;
    if (parents[node] >= 0) {
      std::copy_n(seen.data() + int64_t(parents[node]) * row_words, row_words, row);
    } else {
      std::fill_n(row, row_words, 0);
      row[0] = LowBits(shift);
    }
    row[(shift + node) / kTileColumns] |= uint64_t{1} << (shift + node) % kTileColumns;
  }

  MaskBuilder builder(plan, sequence.num_rows, num_columns);
  const uint64_t* first_row =
      seen.data() + int64_t(sequence.num_pending - sequence.num_rows) * row_words;
  for (int32_t begin = 0; begin < sequence.num_rows; begin += kBlockRows) {
    const int32_t rows = std::min(kBlockRows, sequence.num_rows - begin);
    builder.AddFull(0, first_tile);
    for (int32_t word = 0; word < row_words; ++word) {
      uint64_t* words = builder.NewWords(rows);
      for (int32_t row = 0; row < rows; ++row) {
        words[row] = first_row[int64_t(begin + row) * row_words + word];
      }
      builder.CommitWords(first_tile + word, first_tile + word + 1, rows);
    }
    builder.EndBlock();
  }
}

void PlanCausal(const SequencePlan& sequence, MaskPlan* plan) {
  if (sequence.parents == nullptr) {
    PlanCausalChain(sequence, plan);
  } else {
    PlanAncestors(sequence, sequence.parents, plan);
  }
}

void PlanTree(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan) {
  const auto size = static_cast<int32_t>(node.ints.size());
  if (size != sequence.num_pending && size != sequence.num_rows) {
    Throw(ErrorKind::kValue, "the mask's tree has ", size, " nodes, but ", sequence.num_rows,
          " tokens are new and ", sequence.num_pending,
          " pending with them, and it must have one for each of either");
  }
  PlanCausal(sequence, plan);  // the sequence's parents are those of the tree
}

void PlanDense(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan) {
  const int32_t past = sequence.num_columns() - sequence.num_rows;
  const int32_t shift = past % kTileColumns;
  const int32_t first_tile = past / kTileColumns;
  const int32_t row_words = NumTiles(node.num_rows);
  MaskBuilder builder(plan, sequence.num_rows, sequence.num_columns());
  for (int32_t begin = 0; begin < sequence.num_rows; begin += kBlockRows) {
    const int32_t rows = std::min(kBlockRows, sequence.num_rows - begin);
    builder.AddFull(0, first_tile);
    for (int32_t tile = 0; first_tile + tile < NumTiles(sequence.num_columns()); ++tile) {
      uint64_t* words = builder.NewWords(rows);
      for (int32_t row = 0; row < rows; ++row) {
        const uint64_t* bits = node.words.data() + int64_t(begin + row) * row_words;
        words[row] = tile < row_words ? bits[tile] << shift : 0;
        if (tile == 0) {
          words[row] |= LowBits(shift);
        } else if (shift > 0) {
          words[row] |= bits[tile - 1] >> (kTileColumns - shift);
        }
      }
      builder.CommitWords(first_tile + tile, first_tile + tile + 1, rows);
    }
    builder.EndBlock();
  }
}

void CheckRows(const MaskNode& node, const SequencePlan& sequence) {
  if (node.num_rows != sequence.num_rows) {
    Throw(ErrorKind::kValue, "the mask has ", node.num_rows, " rows, but the sequence gets ",
          sequence.num_rows, " new tokens");
  }
}

void CheckColumns(const MaskNode& node, const SequencePlan& sequence) {
  if (node.num_columns != sequence.num_columns()) {
    Throw(ErrorKind::kValue, "the mask is for ", node.num_columns,
          " columns, but the sequence has ", sequence.num_columns(), " (",
          sequence.num_columns() - sequence.num_rows, " in the cache and ", sequence.num_rows,
          " new ones)");
  }
}

void PlanDocuments(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan) {
  CheckColumns(node, sequence);
  struct Run {
    int32_t id;
    ColumnRange range;
  };
  std::vector<Run> runs;
  for (size_t i = 0; i < node.ints.size(); i += 2) {
    const int32_t end = i + 2 < node.ints.size() ? node.ints[i + 2] : node.num_columns;
    runs.push_back({node.ints[i + 1], {node.ints[i], end}});
  }
  const std::vector<Run> by_column = runs;
  std::stable_sort(runs.begin(), runs.end(),
                   [](const Run& a, const Run& b) { return a.id < b.id; });
  RangeLists lists;
  size_t at = 0;
  for (int32_t row = 0; row < sequence.num_rows; ++row) {
    const int32_t own = sequence.num_columns() - sequence.num_rows + row;
    while (by_column[at].range.end <= own) ++at;
    const int32_t id = by_column[at].id;
    auto run = std::lower_bound(runs.begin(), runs.end(), id,
                                [](const Run& a, int32_t value) { return a.id < value; });
    for (; run != runs.end() && run->id == id; ++run) lists.Add(run->range);
    lists.EndRow();
  }
  lists.MakePlan(sequence, plan);
}

void PlanRanges(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan) {
  CheckRows(node, sequence);
  if (node.num_columns > sequence.num_columns()) {
    Throw(ErrorKind::kValue, "a range of the mask ends at column ", node.num_columns,
          ", but the sequence has ", sequence.num_columns(), " columns, new tokens included");
  }
  RangeLists lists;
  const int32_t* pairs = node.ints.data() + node.num_rows + 1;
  for (int32_t row = 0; row < node.num_rows; ++row) {
    for (int32_t i = node.ints[row]; i < node.ints[row + 1]; ++i) {
      lists.Add({pairs[2 * i], pairs[2 * i + 1]});
    }
    lists.EndRow();
  }
  lists.MakePlan(sequence, plan);
}

void PlanNode(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan);

/*! \brief Ancestors, and (window) or or (prefix) what the positions allow. */
void PlanPositional(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan) {
  const Positions positions(sequence);
  RangeLists lists;
  for (int32_t row = 0; row < sequence.num_rows; ++row) {
    if (node.kind == MaskKind::kWindow) {
      positions.AddWindow(row, node.size, node.sinks, &lists);
    } else {
      positions.AddPrefix(row, node.size, &lists);
    }
    lists.EndRow();
  }
  if (sequence.parents == nullptr) {
    lists.MakePlan(sequence, plan);  // a chain's ranges are causal already
    return;
  }
  MaskPlan by_position, ancestors;
  lists.MakePlan(sequence, &by_position);
  PlanCausal(sequence, &ancestors);
  if (node.kind == MaskKind::kWindow) {
    IntersectPlans(ancestors, by_position, plan);
  } else {
    UnitePlans(ancestors, by_position, plan);
  }
}

void PlanNode(const MaskNode& node, const SequencePlan& sequence, MaskPlan* plan) {
  switch (node.kind) {
    case MaskKind::kCausal:
      return PlanCausal(sequence, plan);
    case MaskKind::kTree:
      return PlanTree(node, sequence, plan);
    case MaskKind::kDense:
      CheckRows(node, sequence);
      return PlanDense(node, sequence, plan);
    case MaskKind::kFull:
      CheckRows(node, sequence);
      CheckColumns(node, sequence);
      plan->num_rows = node.num_rows;
      plan->num_columns = node.num_columns;
      plan->blocks = node.plan.blocks;
      plan->spans = node.plan.spans;
      plan->words = node.plan.words;
      return;
    case MaskKind::kWindow:
    case MaskKind::kPrefixLM:
      return PlanPositional(node, sequence, plan);
    case MaskKind::kDocuments:
      return PlanDocuments(node, sequence, plan);
    case MaskKind::kRanges:
      return PlanRanges(node, sequence, plan);
    case MaskKind::kNot: {
      MaskPlan inner;
      PlanNode(node.children[0].node(), sequence, &inner);
      return ComplementPlan(inner, plan);
    }
    case MaskKind::kAnd:
    case MaskKind::kOr: {
      MaskPlan a, b;
      PlanNode(node.children[0].node(), sequence, &a);
      PlanNode(node.children[1].node(), sequence, &b);
      return node.kind == MaskKind::kAnd ? IntersectPlans(a, b, plan) : UnitePlans(a, b, plan);
    }
    case MaskKind::kPerLayer:
    case MaskKind::kPerHead:
      break;
  }
  Throw(ErrorKind::kInternal, "a mask per layer or head was not resolved before lowering");
}

/*!
 * \brief Splits what lies in the pending region of a tree by the chunk of its logical indices.
 *
 * Siblings share a logical index, so that a token's sums run as if its path were the whole
 * sequence.
 */
void AssignChunks(const SequencePlan& sequence, MaskPlan* plan) {
  const int32_t committed = sequence.num_committed;
  const auto chunk_of = [&](int32_t column) {
    return (committed + sequence.depths[column - committed]) / kChunkColumns;
  };
  int32_t last_chunk = committed / kChunkColumns;
  for (int32_t column = committed; column < plan->num_columns; ++column) {
    last_chunk = std::max(last_chunk, chunk_of(column));
  }
  const std::vector<MaskSpan> spans = plan->spans;
  plan->spans.clear();
  for (int32_t block = 0; block < plan->num_blocks(); ++block) {
    const int32_t first = plan->blocks[block], last = plan->blocks[block + 1];
    const int32_t rows = BlockSize(plan->num_rows, block);
    plan->blocks[block] = static_cast<int32_t>(plan->spans.size());
    for (int32_t i = first; i < last && spans[i].begin < committed; ++i) {
      plan->spans.push_back(spans[i]);
      plan->spans.back().end = std::min(spans[i].end, committed);
    }
    for (int32_t chunk = committed / kChunkColumns; chunk <= last_chunk; ++chunk) {
      for (int32_t i = first; i < last; ++i) {
        int32_t begin = std::max(spans[i].begin, committed);
        for (int32_t end; begin < spans[i].end; begin = end) {
          const int32_t tile = begin / kTileColumns;
          end = std::min(spans[i].end, (tile + 1) * kTileColumns);
          uint64_t bits = 0;  // columns of the tile that lie in the chunk
          for (int32_t column = begin; column < end; ++column) {
            bits |= uint64_t{chunk_of(column) == chunk} << column % kTileColumns;
          }
          if (bits == 0) continue;
          int32_t words = spans[i].words;
          if (bits !=
              (LowBits(end - tile * kTileColumns) & ~LowBits(begin - tile * kTileColumns))) {
            words = static_cast<int32_t>(plan->words.size());
            for (int32_t row = 0; row < rows; ++row) {
              plan->words.push_back(spans[i].words == MaskSpan::kAllRows
                                        ? bits
                                        : plan->words[spans[i].words + row] & bits);
            }
          }
          plan->spans.push_back({begin, end, words, chunk});
        }
      }
    }
  }
  plan->blocks.back() = static_cast<int32_t>(plan->spans.size());
}

}  // namespace

void LowerMask(const Mask* mask, const SequencePlan& sequence, MaskPlan* plan) {
  if (mask == nullptr) {
    PlanCausal(sequence, plan);
  } else {
    PlanNode(mask->node(), sequence, plan);
  }
  if (sequence.depths != nullptr) AssignChunks(sequence, plan);
}

}  // namespace kvctl
