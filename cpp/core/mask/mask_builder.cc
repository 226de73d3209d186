#include "core/mask/mask_builder.h"

#include <cstring>

namespace kvctl {

bool MaskPlan::Visible(int32_t query, int32_t key) const {
  const int32_t block = query / kBlockQueries;
  for (int32_t i = blocks[block]; i < blocks[block + 1]; ++i) {
    const MaskSpan& span = spans[i];
    if (key < span.begin || key >= span.end) continue;
    if (span.words == MaskSpan::kAllQueries) return true;
    if (words[span.words + query % kBlockQueries] >> (key % kTileKeys) & 1) return true;
  }
  return false;
}

namespace {

/*! \brief The bits of the keys [begin, end) within a tile. */
uint64_t RangeBits(const KeyRange& range, int32_t tile) {
  const int32_t first = tile * kTileKeys;
  return LowBits(std::clamp(range.end - first, 0, kTileKeys)) &
         ~LowBits(std::clamp(range.begin - first, 0, kTileKeys));
}

}  // namespace

void PlanFromRanges(const int32_t* offsets, const KeyRange* ranges, int32_t num_query_tokens,
                    int32_t kv_len, MaskPlan* plan) {
  MaskBuilder builder(plan, num_query_tokens, kv_len);
  std::vector<int32_t>
      cuts;  // between two cuts lies one tile, or tiles that are equal for each query
  std::vector<int32_t> cursor;  // first range of each query that does not end before the tile
  for (int32_t begin = 0; begin < num_query_tokens; begin += kBlockQueries) {
    const int32_t queries = std::min(kBlockQueries, num_query_tokens - begin);
    cuts.clear();
    for (int32_t i = offsets[begin]; i < offsets[begin + queries]; ++i) {
      // A range that ends at the last key fills the last tile.
      const int32_t end = ranges[i].end == kv_len ? NumTiles(kv_len) * kTileKeys : ranges[i].end;
      for (int32_t cut : {ranges[i].begin / kTileKeys, NumTiles(ranges[i].begin), end / kTileKeys,
                          NumTiles(end)}) {
        if (cuts.empty() || cuts.back() != cut) cuts.push_back(cut);
      }
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    cursor.assign(offsets + begin, offsets + begin + queries);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      uint64_t* words = builder.NewWords(queries);
      for (int32_t query = 0; query < queries; ++query) {
        const int32_t last = offsets[begin + query + 1];
        int32_t& at = cursor[query];
        while (at < last && ranges[at].end <= cuts[i] * kTileKeys) ++at;
        words[query] = 0;
        for (int32_t r = at; r < last && ranges[r].begin < (cuts[i] + 1) * kTileKeys; ++r) {
          words[query] |= RangeBits(ranges[r], cuts[i]);
        }
      }
      builder.CommitWords(cuts[i], cuts[i + 1], queries);
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

void PlanFromBytes(const uint8_t* bytes, int32_t num_query_tokens, int32_t kv_len, MaskPlan* plan) {
  MaskBuilder builder(plan, num_query_tokens, kv_len);
  const int32_t num_tiles = NumTiles(kv_len);
  for (int32_t begin = 0; begin < num_query_tokens; begin += kBlockQueries) {
    const int32_t queries = std::min(kBlockQueries, num_query_tokens - begin);
    for (int32_t tile = 0; tile < num_tiles; ++tile) {
      uint64_t* words = builder.NewWords(queries);
      const int32_t width = std::min(kTileKeys, kv_len - tile * kTileKeys);
      for (int32_t query = 0; query < queries; ++query) {
        const uint8_t* first = bytes + int64_t(begin + query) * kv_len + tile * kTileKeys;
        words[query] = PackBytes(first, width);
      }
      builder.CommitWords(tile, tile + 1, queries);
    }
    builder.EndBlock();
  }
}

}  // namespace kvctl
