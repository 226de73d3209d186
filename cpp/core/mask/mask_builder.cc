#include "core/mask/mask_builder.h"

#include <cstring>

namespace kvctl {

bool MaskPlan::Visible(int32_t row, int32_t column) const {
  const int32_t block = row / kBlockRows;
  for (int32_t i = blocks[block]; i < blocks[block + 1]; ++i) {
    const MaskSpan& span = spans[i];
    if (column < span.begin || column >= span.end) continue;
    if (span.words == MaskSpan::kAllRows) return true;
    if (words[span.words + row % kBlockRows] >> (column % kTileColumns) & 1) return true;
  }
  return false;
}

namespace {

/*! \brief The bits of the columns [begin, end) within a tile. */
uint64_t RangeBits(const ColumnRange& range, int32_t tile) {
  const int32_t first = tile * kTileColumns;
  return LowBits(std::clamp(range.end - first, 0, kTileColumns)) &
         ~LowBits(std::clamp(range.begin - first, 0, kTileColumns));
}

}  // namespace

void PlanFromRanges(const int32_t* offsets, const ColumnRange* ranges, int32_t num_rows,
                    int32_t num_columns, MaskPlan* plan) {
  MaskBuilder builder(plan, num_rows, num_columns);
  std::vector<int32_t> cuts;    // between two of them a row's tiles are alike, or the tile is one
  std::vector<int32_t> cursor;  // first range of each row that does not end before the tile
  for (int32_t begin = 0; begin < num_rows; begin += kBlockRows) {
    const int32_t rows = std::min(kBlockRows, num_rows - begin);
    cuts.clear();
    for (int32_t i = offsets[begin]; i < offsets[begin + rows]; ++i) {
      // A range that ends with the columns fills the last tile: nothing lies behind it.
      const int32_t end =
          ranges[i].end == num_columns ? NumTiles(num_columns) * kTileColumns : ranges[i].end;
      for (int32_t cut : {ranges[i].begin / kTileColumns, NumTiles(ranges[i].begin),
                          end / kTileColumns, NumTiles(end)}) {
        if (cuts.empty() || cuts.back() != cut) cuts.push_back(cut);
      }
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    cursor.assign(offsets + begin, offsets + begin + rows);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      uint64_t* words = builder.NewWords(rows);
      for (int32_t row = 0; row < rows; ++row) {
        const int32_t last = offsets[begin + row + 1];
        int32_t& at = cursor[row];
        while (at < last && ranges[at].end <= cuts[i] * kTileColumns) ++at;
        words[row] = 0;
        for (int32_t r = at; r < last && ranges[r].begin < (cuts[i] + 1) * kTileColumns; ++r) {
          words[row] |= RangeBits(ranges[r], cuts[i]);
        }
      }
      builder.CommitWords(cuts[i], cuts[i + 1], rows);
    }
    builder.EndBlock();
  }
}

uint64_t PackBytes(const uint8_t* bytes, int32_t count) {
  uint64_t word = 0;
  int32_t i = 0;
  for (; i + 8 <= count; i += 8) {
    // Eight bytes to eight bits: nonzero bytes to 0x80, then one bit of each gathered by a
    // multiplication.
    uint64_t eight;
    std::memcpy(&eight, bytes + i, 8);
    eight = (((eight & 0x7f7f7f7f7f7f7f7fu) + 0x7f7f7f7f7f7f7f7fu) | eight) & 0x8080808080808080u;
    word |= ((eight >> 7) * 0x0102040810204080u >> 56) << i;
  }
  for (; i < count; ++i) word |= uint64_t{bytes[i] != 0} << i;
  return word;
}

void PlanFromBytes(const uint8_t* bytes, int32_t num_rows, int32_t num_columns, MaskPlan* plan) {
  MaskBuilder builder(plan, num_rows, num_columns);
  const int32_t num_tiles = NumTiles(num_columns);
  for (int32_t begin = 0; begin < num_rows; begin += kBlockRows) {
    const int32_t rows = std::min(kBlockRows, num_rows - begin);
    for (int32_t tile = 0; tile < num_tiles; ++tile) {
      uint64_t* words = builder.NewWords(rows);
      const int32_t width = std::min(kTileColumns, num_columns - tile * kTileColumns);
      for (int32_t row = 0; row < rows; ++row) {
        const uint8_t* first = bytes + int64_t(begin + row) * num_columns + tile * kTileColumns;
        words[row] = PackBytes(first, width);
      }
      builder.CommitWords(tile, tile + 1, rows);
    }
    builder.EndBlock();
  }
}

}  // namespace kvctl
