/*!
 * \file kernels/cpu/attention/attention_scratch-inl.h
 * \brief The scratch memory of a thread, and the keys of a chunk.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_SCRATCH_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_SCRATCH_INL_H_

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/cpu/attention/attention_panel-inl.h"
#include "kernels/cpu/attention/attention_unit.h"
#include "kernels/cpu/simd/vec-inl.h"
#include "kernels/int8_row.h"

namespace kvctl {
namespace {

/*! \brief The most key blocks in a chunk that is packed, unless all are. */
constexpr int32_t kPackedBlocks = 2 * kChunkKeys / kTileKeys;
/*! \brief Floats between the score rows of queries, and between packed values: an odd number of
 * cache lines, so that they spread over the sets of a cache. */
constexpr int32_t kPadding = 16;
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/*! \brief Up to 64 contiguous keys of a chunk: those of one tile. */
struct KeyBlock {
  int32_t first_key;  // multiple of 64
  int32_t words;      // as in MaskSpan
  uint64_t present;   // keys that the span covers and that have a page
  bool by_key;        // logical index = key
};

/*! \brief The keys of one chunk that a block of queries may see. */
struct ChunkKeys {
  int32_t num_blocks;
  KeyBlock* blocks;   // [max_key_blocks]
  const void** keys;  // [max_key_blocks * 64], by block and key; nullptr where there is none
  float* positions;   // [max_key_blocks * 64], where ALiBi needs them
  /*! \brief nullptr, or the panels of all keys, one after another. `keys` are then values. */
  const float* panels;
};

/*! \brief Where the parts of a thread's scratch memory begin. */
struct Scratch {
  float* q;        // [unit queries, QueryFloats], scaled if scores are plain scaled dot products
  float* total;    // [unit queries, head_dim]: acc of the chunks merged so far
  float* total_m;  // [unit queries]
  float* total_l;  // [unit queries]
  // Of one tile of queries and one chunk:
  float* acc;     // [tile queries, head_dim]
  float* m;       // [tile queries]
  float* l;       // [tile queries]
  float* lanes;   // [tile queries, kLanes]: maxima, then sums of p by logical index modulo kLanes
  float* scores;  // [tile queries, max_key_blocks * 64 + kPadding]
  uint64_t* visible;           // [max_key_blocks, tile_tokens]
  ChunkKeys chunks[2];         // the current one and the next
  float* panel;                // [head_dim, kPanelKeys]
  const void** packed_values;  // [PackedKeys]: addresses of values, as keys in ChunkKeys...
  float* packed;               // ... [PackedKeys, head_dim + kPadding] in float32
  float* panels;               // [PackedKeys, head_dim]
  uintptr_t* runs;             // [2 * PackedKeys + 1]: what is packed next, for the fetcher
  int64_t size;                // floats in all
};

/*! \brief Whether the keys and values of every chunk are copied to float32 first. */
inline bool PacksAlways(const AttentionArgs& args) { return args.kv_dtype == DType::kInt8; }

/*! \brief Whether a unit copies the keys and values of a chunk first, because many queries share
 * them. 16-bit elements are then converted once. The copies are contiguous, while the keys of one
 * head in pages are far apart and compete for the same cache sets. */
inline bool PacksChunks(const AttentionArgs& args, int32_t queries) {
  return PacksAlways(args) || queries > (args.kv_dtype == DType::kFloat32 ? 32 : 8);
}

/*! \brief The most keys in a packed chunk. */
inline int64_t PackedKeys(const AttentionArgs& args, const AttentionShape& shape) {
  const int64_t blocks = PacksAlways(args) ? shape.max_key_blocks : kPackedBlocks;
  return blocks * kTileKeys;
}

/*! \brief Whether values are read where they are even then: float32 in runs that spread over the
 * sets of a cache. */
inline bool ValuesStay(const AttentionArgs& args) {
  constexpr int64_t kSetBytes = 1 << 12;
  return args.kv_dtype == DType::kFloat32 &&
         int64_t{args.page_size} * args.head_dim * int64_t{sizeof(float)} >= kSetBytes;
}

inline Scratch Layout(const AttentionArgs& args, const AttentionShape& shape, float* base) {
  const int64_t unit_queries = int64_t(shape.unit_tokens) * shape.group;
  const int64_t tile_queries = int64_t(shape.tile_tokens) * shape.group;
  const int64_t keys = int64_t(shape.max_key_blocks) * kTileKeys;
  int64_t at = 0;
  const auto take = [&](int64_t floats) {
    float* part = base + at;
    at += (floats + 31) / 16 * 16;  // padding to read and write full vectors at the end
    return part;
  };
  Scratch s;
  // Tiles may read more queries than there are.
  s.q = take((unit_queries + kPanelKeys) * QueryFloats(args.head_dim));
  s.total = take(unit_queries * args.head_dim);
  s.total_m = take(unit_queries);
  s.total_l = take(unit_queries);
  s.acc = take(tile_queries * args.head_dim);
  s.m = take(tile_queries);
  s.l = take(tile_queries);
  s.lanes = take((tile_queries + 3) * kLanes);
  s.scores = take(tile_queries * (keys + kPadding));
  s.visible =
      reinterpret_cast<uint64_t*>(take(2 * int64_t(shape.max_key_blocks) * shape.tile_tokens));
  for (ChunkKeys& chunk : s.chunks) {
    chunk.num_blocks = 0;
    chunk.panels = nullptr;
    chunk.blocks = reinterpret_cast<KeyBlock*>(
        take(shape.max_key_blocks * (sizeof(KeyBlock) / sizeof(float))));
    chunk.keys = reinterpret_cast<const void**>(take(keys * (sizeof(void*) / sizeof(float))));
    chunk.positions = take(args.alibi_slopes != nullptr ? keys : 0);
  }
  const int64_t packed =
      PacksChunks(args, shape.unit_tokens * shape.group) ? PackedKeys(args, shape) : 0;
  s.panel = take(PanelFloats(args.head_dim));
  s.packed_values = reinterpret_cast<const void**>(take(packed * (sizeof(void*) / sizeof(float))));
  s.packed = take(packed * (args.head_dim + kPadding));
  s.panels = take(packed / kPanelKeys * PanelFloats(args.head_dim));
  s.runs =
      reinterpret_cast<uintptr_t*>(take((2 * packed + 1) * (sizeof(uintptr_t) / sizeof(float))));
  s.size = at;
  return s;
}

/*! \brief Positions of the keys of a sequence. */
class KeyPositions {
 public:
  explicit KeyPositions(const SequencePlan& sequence) : sequence_(sequence) {}

  int32_t Of(int32_t key) const {
    const int32_t pending = key - sequence_.num_committed;
    if (pending < 0) {
      return sequence_.committed_positions ? sequence_.committed_positions[key] : key;
    }
    return sequence_.next_position + (sequence_.depths ? sequence_.depths[pending] : pending);
  }

 private:
  const SequencePlan& sequence_;
};

/*! \brief Finds the keys of chunks in the pages of a sequence. T: element type of the pages. */
template <typename T>
class KeyFinder {
 public:
  KeyFinder(const AttentionArgs& args, const AttentionUnit& unit)
      : args_(args),
        sequence_(args.sequences[unit.sequence]),
        pages_(args.head_pages != nullptr
                   ? args.head_pages[int64_t{unit.sequence} * args.num_kv_heads + unit.kv_head]
                   : sequence_.pages),
        positions_(sequence_),
        plan_(args.masks.plan(unit.sequence, unit.kv_head)),
        row_(RowElements(args.kv_dtype, args.head_dim)),
        head_(static_cast<const T*>(args.pages) + int64_t(unit.kv_head) * args.page_size * row_),
        page_elements_(2 * int64_t(args.num_kv_heads) * args.page_size * row_) {}

  void Find(const ChunkWalker& walker, ChunkKeys* chunk) const {
    chunk->num_blocks = 0;
    const int32_t chunk_begin = walker.chunk() * kChunkKeys;
    for (int32_t i = walker.first(); i < walker.last(); ++i) {
      const MaskSpan& span = plan_.spans.data()[i];
      if (ChunkWalker::FirstChunk(span) > walker.chunk()) break;
      const bool by_key = span.chunk == MaskSpan::kByKey;
      const int32_t begin = by_key ? std::max(span.begin, chunk_begin) : span.begin;
      const int32_t end = by_key ? std::min(span.end, chunk_begin + kChunkKeys) : span.end;
      for (int32_t first = begin / kTileKeys * kTileKeys; first < end; first += kTileKeys) {
        KeyBlock block{first, span.words, 0, by_key};
        FindKeys(std::max(begin, first), std::min(end, first + kTileKeys), chunk, &block);
        if (block.present != 0) chunk->blocks[chunk->num_blocks++] = block;
      }
    }
  }

  /*! \brief Elements from a key to its value. */
  int64_t value_offset() const { return page_elements_ / 2; }

 private:
  void FindKeys(int32_t begin, int32_t end, ChunkKeys* chunk, KeyBlock* block) const {
    const int64_t at = int64_t(chunk->num_blocks) * kTileKeys;
    const void** keys = chunk->keys + at;
    if (end - begin < kTileKeys) std::fill_n(keys, kTileKeys, nullptr);
    for (int32_t kv_index = begin; kv_index < end;) {
      const int32_t page = pages_[kv_index / args_.page_size];
      const int32_t offset = kv_index % args_.page_size;
      const int32_t stop = std::min(end, kv_index - offset + args_.page_size);
      const int32_t first = kv_index - block->first_key, last = stop - block->first_key;
      if (page >= 0) {
        const T* key = head_ + (page * page_elements_ + offset * row_);
        for (int32_t c = first; c < last; ++c, key += row_) keys[c] = key;
        block->present |= LowestBits(last) & ~LowestBits(first);
      } else {
        std::fill(keys + first, keys + last, nullptr);
      }
      kv_index = stop;
    }
    if (args_.alibi_slopes == nullptr) return;
    for (int32_t kv_index = begin; kv_index < end; ++kv_index) {
      chunk->positions[at + kv_index - block->first_key] =
          static_cast<float>(positions_.Of(kv_index));
    }
  }

  const AttentionArgs& args_;
  const SequencePlan& sequence_;
  const int32_t* pages_;
  const KeyPositions positions_;
  const MaskPlan& plan_;
  const int64_t row_;  // elements from a key to the next one of a page
  const T* head_;      // keys of this head in page 0
  const int64_t page_elements_;
};

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_SCRATCH_INL_H_
