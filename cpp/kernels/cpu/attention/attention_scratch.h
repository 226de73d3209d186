// A thread's scratch memory, and the columns of a chunk. Included inside the namespace of an
// instruction set, after its vec_*.h.

/*! \brief Chunks of at most so many slots may be packed. */
constexpr int32_t kPackedSlots = 2 * kChunkColumns / kTileColumns;
/*! \brief Floats between the rows of scores, and of packed keys: a whole number of lines, odd so
 * that they spread over a cache. */
constexpr int32_t kPadding = 16;
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/*! \brief Up to 64 neighbouring columns of a chunk. */
struct Slot {
  int32_t first_column;  // multiple of 64
  int32_t words;         // as in MaskSpan
  uint64_t columns;      // those that the span covers and that have a page
  bool by_column;        // logical index = column
};

/*! \brief The columns of one chunk that a block of rows may see. */
struct ChunkColumns {
  int32_t num_slots;
  Slot* slots;        // [max_slots]
  const void** keys;  // [max_slots * 64], by slot and column; nullptr where there is none
  float* positions;   // [max_slots * 64], where ALiBi needs them
};

/*! \brief Where the parts of a thread's scratch memory begin. Rows are query rows. */
struct Scratch {
  float* q;        // [unit rows, head_dim], scaled where scores need nothing but the scale
  float* total;    // [unit rows, head_dim]: acc of what was merged so far
  float* total_m;  // [unit rows]
  float* total_l;  // [unit rows]
  // Of one tile of rows and one chunk:
  float* acc;         // [tile rows, head_dim]
  float* m;           // [tile rows]
  float* l;           // [tile rows]
  float* lanes;       // [tile rows, kLanes]: maxima, then sums of p by logical index modulo kLanes
  float* scores;      // [tile rows, max_slots * 64 + kPadding]
  uint64_t* visible;  // [max_slots, tile_tokens]
  ChunkColumns chunks[2];    // the one at work and the one after it
  const void** packed_keys;  // [kPackedSlots * 64]: where keys are, as in ChunkColumns...
  float* packed;             // ... [2, kPackedSlots * 64, head_dim + kPadding]: K and V in float32
  int64_t size;              // floats in all
};

/*!
 * \brief Whether a unit copies the keys and values of a chunk before it works on them: where many
 * query rows share them. Pages of 16-bit numbers are converted once, and the copies lie close
 * together, while the rows of one head are so far apart that they compete for the same places in a
 * cache.
 */
inline bool PacksChunks(const AttentionArgs& args, int32_t rows) {
  return rows > (args.kv_dtype == DType::kFloat32 ? 32 : 8);
}

inline Scratch Layout(const AttentionArgs& args, const AttentionShape& shape, float* base) {
  const int64_t unit_rows = int64_t(shape.unit_tokens) * shape.group;
  const int64_t tile_rows = int64_t(shape.tile_tokens) * shape.group;
  const int64_t columns = int64_t(shape.max_slots) * kTileColumns;
  int64_t at = 0;
  const auto take = [&](int64_t floats) {
    float* part = base + at;
    at += (floats + 31) / 16 * 16;  // room to read and write whole vectors at the end
    return part;
  };
  Scratch s;
  s.q = take(unit_rows * args.head_dim);
  s.total = take(unit_rows * args.head_dim);
  s.total_m = take(unit_rows);
  s.total_l = take(unit_rows);
  s.acc = take(tile_rows * args.head_dim);
  s.m = take(tile_rows);
  s.l = take(tile_rows);
  s.lanes = take((tile_rows + 3) * kLanes);
  s.scores = take(tile_rows * (columns + kPadding));
  s.visible = reinterpret_cast<uint64_t*>(take(2 * int64_t(shape.max_slots) * shape.tile_tokens));
  for (ChunkColumns& chunk : s.chunks) {
    chunk.num_slots = 0;
    chunk.slots = reinterpret_cast<Slot*>(take(shape.max_slots * (sizeof(Slot) / sizeof(float))));
    chunk.keys = reinterpret_cast<const void**>(take(columns * (sizeof(void*) / sizeof(float))));
    chunk.positions = take(args.alibi_slopes != nullptr ? columns : 0);
  }
  const int64_t packed =
      PacksChunks(args, shape.unit_tokens * shape.group) ? kPackedSlots * kTileColumns : 0;
  s.packed_keys = reinterpret_cast<const void**>(take(packed * (sizeof(void*) / sizeof(float))));
  s.packed = take(2 * packed * (args.head_dim + kPadding));
  s.size = at;
  return s;
}

/*! \brief Positions of the columns of a sequence. */
class Positions {
 public:
  explicit Positions(const SequencePlan& sequence) : sequence_(sequence) {}

  int32_t Of(int32_t column) const {
    const int32_t pending = column - sequence_.num_committed;
    if (pending < 0) {
      return sequence_.committed_positions ? sequence_.committed_positions[column] : column;
    }
    return sequence_.next_position + (sequence_.depths ? sequence_.depths[pending] : pending);
  }

 private:
  const SequencePlan& sequence_;
};

/*! \brief Finds the columns of chunks in the pages of a sequence. T: element type of the pages. */
template <typename T>
class ColumnFinder {
 public:
  ColumnFinder(const AttentionArgs& args, const AttentionUnit& unit)
      : args_(args),
        sequence_(args.sequences[unit.sequence]),
        pages_(args.head_pages != nullptr
                   ? args.head_pages[int64_t{unit.sequence} * args.num_kv_heads + unit.kv_head]
                   : sequence_.pages),
        positions_(sequence_),
        plan_(args.masks.plan(unit.sequence, unit.kv_head)),
        head_(static_cast<const T*>(args.pages) +
              int64_t(unit.kv_head) * args.page_size * args.head_dim),
        page_elements_(2 * int64_t(args.num_kv_heads) * args.page_size * args.head_dim) {}

  void Find(const ChunkWalker& walker, ChunkColumns* chunk) const {
    chunk->num_slots = 0;
    const int32_t chunk_begin = walker.chunk() * kChunkColumns;
    for (int32_t i = walker.first(); i < walker.last(); ++i) {
      const MaskSpan& span = plan_.spans.data()[i];
      if (ChunkWalker::FirstChunk(span) > walker.chunk()) break;
      const bool by_column = span.chunk == MaskSpan::kByColumn;
      const int32_t begin = by_column ? std::max(span.begin, chunk_begin) : span.begin;
      const int32_t end = by_column ? std::min(span.end, chunk_begin + kChunkColumns) : span.end;
      for (int32_t first = begin / kTileColumns * kTileColumns; first < end;
           first += kTileColumns) {
        Slot slot{first, span.words, 0, by_column};
        FindKeys(std::max(begin, first), std::min(end, first + kTileColumns), chunk, &slot);
        if (slot.columns != 0) chunk->slots[chunk->num_slots++] = slot;
      }
    }
  }

  /*! \brief Elements from a key to its value. */
  int64_t value_offset() const { return page_elements_ / 2; }

 private:
  void FindKeys(int32_t begin, int32_t end, ChunkColumns* chunk, Slot* slot) const {
    const int64_t at = int64_t(chunk->num_slots) * kTileColumns;
    const void** keys = chunk->keys + at;
    if (end - begin < kTileColumns) std::fill_n(keys, kTileColumns, nullptr);
    for (int32_t column = begin; column < end;) {
      const int32_t page = pages_[column / args_.page_size];
      const int32_t offset = column % args_.page_size;
      const int32_t stop = std::min(end, column - offset + args_.page_size);
      const int32_t first = column - slot->first_column, last = stop - slot->first_column;
      if (page >= 0) {
        const T* key = head_ + (page * page_elements_ + int64_t(offset) * args_.head_dim);
        for (int32_t c = first; c < last; ++c, key += args_.head_dim) keys[c] = key;
        slot->columns |= LowestBits(last) & ~LowestBits(first);
      } else {
        std::fill(keys + first, keys + last, nullptr);
      }
      column = stop;
    }
    if (args_.alibi_slopes == nullptr) return;
    for (int32_t column = begin; column < end; ++column) {
      chunk->positions[at + column - slot->first_column] =
          static_cast<float>(positions_.Of(column));
    }
  }

  const AttentionArgs& args_;
  const SequencePlan& sequence_;
  const int32_t* pages_;
  const Positions positions_;
  const MaskPlan& plan_;
  const T* head_;  // keys of this head in page 0
  const int64_t page_elements_;
};

/*! \brief Copies the keys and values of a chunk to `scratch` in float32; returns where they are. */
template <typename T>
inline ChunkColumns PackChunk(const ChunkColumns& chunk, int64_t value_offset, int32_t head_dim,
                              int64_t packed_offset, const Scratch& scratch) {
  ChunkColumns packed = chunk;
  packed.keys = scratch.packed_keys;
  float* to = scratch.packed;
  for (int32_t i = 0; i < chunk.num_slots * kTileColumns; ++i, to += head_dim + kPadding) {
    const T* key = static_cast<const T*>(chunk.keys[i]);
    packed.keys[i] = key != nullptr ? to : nullptr;
    if (key == nullptr) continue;
    for (int32_t d = 0; d < head_dim; d += kLanes) Store(to + d, Load(key + d));
    const T* value = key + value_offset;
    for (int32_t d = 0; d < head_dim; d += kLanes) Store(to + packed_offset + d, Load(value + d));
  }
  return packed;
}
