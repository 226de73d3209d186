// Attention of one unit of work, for one instruction set. Included inside the namespace of that
// set, after its vec_*.h and attention_micro.h.
//
// A chunk's partial result of a query row is (m, l, acc): the largest score (times log2 e), the sum
// of p = 2^(score - m) and the sum of p * v. Scores, p and what follows depend on nothing but the
// row and the columns that it sees in this chunk, so partial results merged in the order of chunks
// are the same however the work was cut. (Online softmax: Milakov & Gimelshein 2018,
// arXiv:1805.02867, eq. 6; partial results over the sequence: Dao et al. 2023, "Flash-Decoding".)

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

/*! \brief Where the parts of a thread's scratch memory begin. */
struct Scratch {
  float* q;           // [unit rows, head_dim]
  float* acc;         // [unit rows, head_dim]
  float* state;       // [unit rows, 2]: m, l
  float* chunk_acc;   // [tile rows, head_dim]
  float* maxima;      // [tile rows, kLanes]
  float* lanes;       // [tile rows, kLanes]: partial sums of p by logical index modulo kLanes
  float* scores;      // [tile rows, max_slots * 64]
  float* positions;   // [max_slots * 64], for ALiBi
  uint64_t* visible;  // [max_slots, tile_tokens]
  Slot* slots;        // [max_slots]
  const void** keys;  // [max_slots * 64]
  int64_t size;       // floats in all
};

inline Scratch Layout(const AttentionArgs& args, const AttentionShape& shape, float* base) {
  const int64_t unit_rows = int64_t(shape.unit_tokens) * shape.group;
  const int64_t tile_rows = int64_t(shape.tile_tokens) * shape.group;
  const int64_t columns = int64_t(shape.max_slots) * kTileColumns;
  int64_t at = 0;
  const auto take = [&](int64_t floats) {
    float* part = base + at;
    at += (floats + 15) / 16 * 16;
    return part;
  };
  Scratch s;
  s.q = take(unit_rows * args.head_dim);
  s.acc = take(unit_rows * args.head_dim);
  s.state = take(unit_rows * 2);
  s.chunk_acc = take(tile_rows * args.head_dim);
  s.maxima = take(tile_rows * kLanes);
  s.lanes = take(tile_rows * kLanes);
  s.scores = take(tile_rows * columns);
  s.positions = take(columns);
  s.visible = reinterpret_cast<uint64_t*>(take(2 * int64_t(shape.max_slots) * shape.tile_tokens));
  s.slots = reinterpret_cast<Slot*>(take(shape.max_slots * (sizeof(Slot) / sizeof(float))));
  s.keys = reinterpret_cast<const void**>(take(columns * (sizeof(void*) / sizeof(float))));
  s.size = at;
  return s;
}

template <typename From>
inline void PackRow(const From* from, int32_t size, float* to) {
  for (int32_t i = 0; i < size; i += kLanes) Store(to + i, Load(from + i));
}

/*! \brief The query rows of a unit in float32, one after another. */
inline void PackQueries(const AttentionArgs& args, const AttentionShape& shape,
                        const AttentionUnit& unit, float* to) {
  const int64_t row_begin = args.sequences[unit.sequence].row_begin;
  const int64_t size = int64_t(shape.group) * args.head_dim;
  for (int32_t token = unit.token_begin; token < unit.token_end; ++token, to += size) {
    const int64_t at = (row_begin + token) * args.q_row_stride + unit.kv_head * size;
    const auto count = static_cast<int32_t>(size);
    if (args.q_dtype == DType::kFloat32) {
      PackRow(static_cast<const float*>(args.q) + at, count, to);
    } else if (args.q_dtype == DType::kFloat16) {
      PackRow(static_cast<const Float16*>(args.q) + at, count, to);
    } else {
      PackRow(static_cast<const BFloat16*>(args.q) + at, count, to);
    }
  }
}

/*! \brief One unit's pass over its chunks. T is the element type of the pages. */
template <typename T>
class UnitPass {
 public:
  UnitPass(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
           float* scratch)
      : args_(args),
        shape_(shape),
        unit_(unit),
        sequence_(args.sequences[unit.sequence]),
        plan_(args.masks.plan(unit.sequence, unit.kv_head)),
        block_(unit.token_begin / kBlockRows),
        head_dim_(args.head_dim),
        value_offset_(int64_t(args.num_kv_heads) * args.page_size * args.head_dim),
        s_(Layout(args, shape, scratch)) {}

  /*! \brief Calls sink(first row, rows) for each tile of each chunk of the unit, its partial result
   * being in maxima, lanes and chunk_acc. */
  template <typename F>
  void ForEachPartial(F&& sink) {
    PackQueries(args_, shape_, unit_, s_.q);
    ChunkWalker walker(plan_, block_);
    for (int32_t ordinal = 0; ordinal < unit_.chunk_end && walker.Next(); ++ordinal) {
      if (ordinal < unit_.chunk_begin) continue;
      FindColumns(walker);
      for (int32_t token = unit_.token_begin; token < unit_.token_end;
           token += shape_.tile_tokens) {
        const int32_t end = std::min(token + shape_.tile_tokens, unit_.token_end);
        AttendTile(token, end);
        sink(ordinal, (token - unit_.token_begin) * shape_.group, (end - token) * shape_.group);
      }
    }
  }

  const Scratch& scratch() const { return s_; }

 private:
  /*! \brief The slots of a chunk, and where their keys are. */
  void FindColumns(const ChunkWalker& walker) {
    num_slots_ = 0;
    const int32_t chunk_begin = walker.chunk() * kChunkColumns;
    for (int32_t i = walker.first(); i < walker.last(); ++i) {
      const MaskSpan& span = plan_.spans[i];
      if (ChunkWalker::FirstChunk(span) > walker.chunk()) break;
      const bool by_column = span.chunk == MaskSpan::kByColumn;
      const int32_t begin = by_column ? std::max(span.begin, chunk_begin) : span.begin;
      const int32_t end = by_column ? std::min(span.end, chunk_begin + kChunkColumns) : span.end;
      for (int32_t first = begin / kTileColumns * kTileColumns; first < end;
           first += kTileColumns) {
        Slot& slot = s_.slots[num_slots_];
        slot = {first, span.words, 0, by_column};
        FindKeys(std::max(begin, first), std::min(end, first + kTileColumns), num_slots_, &slot);
        if (slot.columns != 0) ++num_slots_;
      }
    }
  }

  void FindKeys(int32_t begin, int32_t end, int32_t index, Slot* slot) {
    const void** keys = s_.keys + int64_t(index) * kTileColumns;
    const int32_t page_size = args_.page_size;
    const T* head =
        static_cast<const T*>(args_.pages) + int64_t(unit_.kv_head) * page_size * head_dim_;
    for (int32_t column = begin; column < end;) {
      const int32_t page = sequence_.pages[column / page_size];
      const int32_t offset = column % page_size;
      const int32_t stop = std::min(end, column - offset + page_size);
      if (page >= 0) {
        const T* key = head + (2 * page * value_offset_ + int64_t(offset) * head_dim_);
        for (int32_t c = column; c < stop; ++c, key += head_dim_) {
          keys[c - slot->first_column] = key;
        }
        slot->columns |=
            LowestBits(stop - slot->first_column) & ~LowestBits(column - slot->first_column);
      }
      column = stop;
    }
    if (args_.alibi_slopes == nullptr) return;
    float* positions = s_.positions + int64_t(index) * kTileColumns;
    for (int32_t column = begin; column < end; ++column) {
      positions[column - slot->first_column] = static_cast<float>(PositionOf(column));
    }
  }

  int32_t PositionOf(int32_t column) const {
    const int32_t pending = column - sequence_.num_committed;
    if (pending < 0) {
      return sequence_.committed_positions ? sequence_.committed_positions[column] : column;
    }
    return sequence_.next_position + (sequence_.depths ? sequence_.depths[pending] : pending);
  }

  const T* const* Keys(int32_t slot) const {
    return reinterpret_cast<const T* const*>(s_.keys) + int64_t(slot) * kTileColumns;
  }

  void AttendTile(int32_t token_begin, int32_t token_end) {
    const int32_t tokens = token_end - token_begin, rows = tokens * shape_.group;
    const int64_t stride = int64_t(num_slots_) * kTileColumns;
    const float* q = s_.q + int64_t(token_begin - unit_.token_begin) * shape_.group * head_dim_;
    for (int32_t i = 0; i < rows * kLanes; i += kLanes) {
      Store(s_.maxima + i, Set(kMinusInfinity));
      Store(s_.lanes + i, Zero());
    }
    std::memset(s_.chunk_acc, 0, sizeof(float) * rows * head_dim_);
    for (int32_t slot = 0; slot < num_slots_; ++slot) {
      uint64_t* visible = s_.visible + int64_t(slot) * shape_.tile_tokens;
      const uint64_t any = Visible(s_.slots[slot], token_begin, tokens, visible);
      if (any == 0) continue;
      float* scores = s_.scores + int64_t(slot) * kTileColumns;
      Score(q, rows, any, Keys(slot), scores, stride);
      for (int32_t row = 0; row < rows; ++row) {
        const int32_t token = row / shape_.group;
        if (visible[token] == 0) continue;
        MaskAndMax(visible[token], slot, token_begin + token, row % shape_.group,
                   scores + row * stride, s_.maxima + row * kLanes);
      }
    }
    for (int32_t row = 0; row < rows; ++row) Exponentiate(row, stride);
    for (int32_t slot = 0; slot < num_slots_; ++slot) WeighValues(slot, tokens, stride);
  }

  /*! \brief The columns that each token sees; returns their union. */
  uint64_t Visible(const Slot& slot, int32_t token_begin, int32_t tokens, uint64_t* visible) const {
    uint64_t any = 0;
    for (int32_t i = 0; i < tokens; ++i) {
      visible[i] = slot.columns;
      if (slot.words != MaskSpan::kAllRows) {
        visible[i] &= plan_.words[slot.words + token_begin + i - block_ * kBlockRows];
      }
      any |= visible[i];
    }
    return any;
  }

  static void Score(const float* q, int32_t rows, uint64_t any, const T* const* keys, float* scores,
                    int64_t stride, int32_t head_dim) {
    for (int32_t c = 0; c < kTileColumns; c += 4) {
      const auto bits = static_cast<uint32_t>(any >> c & 15);
      if (bits == 0) continue;
      if (bits == 15) {
        ScoreRows(q, rows, head_dim, keys + c, scores + c, stride);
      } else {
        // Hidden columns have no key to follow: score a visible one in their place.
        const T* quad[4];
        for (int i = 0; i < 4; ++i) quad[i] = keys[c + (bits >> i & 1 ? i : __builtin_ctz(bits))];
        ScoreRows(q, rows, head_dim, quad, scores + c, stride);
      }
    }
  }
  void Score(const float* q, int32_t rows, uint64_t any, const T* const* keys, float* scores,
             int64_t stride) const {
    Score(q, rows, any, keys, scores, stride, head_dim_);
  }

  /*! \brief Scores of one row and slot: scaled, in units of log2 e; -inf where hidden. */
  void MaskAndMax(uint64_t visible, int32_t slot, int32_t token, int32_t head, float* scores,
                  float* maxima) const {
    const bool plain = args_.soft_cap <= 0 && args_.alibi_slopes == nullptr;
    const Vec scale = Set(args_.sm_scale * kLog2E);
    Vec largest = Load(maxima);
    for (int32_t c = 0; c < kTileColumns; c += kLanes) {
      const uint64_t bits = visible >> c & LowestBits(kLanes);
      Vec score = Set(kMinusInfinity);
      if (bits != 0) {
        score = plain
                    ? Mul(Load(scores + c), scale)
                    : Shape(Load(scores + c), s_.positions + slot * kTileColumns + c, token, head);
        if (bits != LowestBits(kLanes)) score = Select(bits, score, Set(kMinusInfinity));
      }
      Store(scores + c, score);
      largest = Max(score, largest);
    }
    Store(maxima, largest);
  }

  /*! \brief Soft cap (Gemma Team 2024, arXiv:2408.00118, sec. 2) and ALiBi (Press et al. 2022,
   * arXiv:2108.12409, sec. 3). */
  Vec Shape(Vec dot, const float* positions, int32_t token, int32_t head) const {
    Vec score = Mul(dot, Set(args_.sm_scale));
    if (args_.soft_cap > 0) {
      // tanh x = sign(x) (1 - e) / (1 + e), e = exp(-2 |x|).
      const Vec x = Div(score, Set(args_.soft_cap));
      const Vec negative = Max(Sub(Zero(), x), x);  // |x|; NaN stays NaN
      const Vec e = Exp2(Mul(negative, Set(-2 * kLog2E)));
      const Vec magnitude = Div(Sub(Set(1.f), e), Add(Set(1.f), e));
      score = Mul(Set(args_.soft_cap), CopySign(magnitude, x));
    }
    if (args_.alibi_slopes != nullptr) {
      const int32_t column = plan_.num_columns - plan_.num_rows + token;
      const Vec distance = Sub(Load(positions), Set(static_cast<float>(PositionOf(column))));
      score = Fma(Set(args_.alibi_slopes[unit_.kv_head * shape_.group + head]), distance, score);
    }
    return Mul(score, Set(kLog2E));
  }

  /*! \brief Scores of one row to weights p; their sums by logical index modulo kLanes. */
  void Exponentiate(int32_t row, int64_t stride) {
    const int32_t token = row / shape_.group;
    float* maxima = s_.maxima + row * kLanes;
    float largest = maxima[0];
    for (int i = 1; i < kLanes; ++i) largest = std::max(largest, maxima[i]);
    bool sees = false;
    float* lanes = s_.lanes + row * kLanes;
    for (int32_t slot = 0; slot < num_slots_; ++slot) {
      const uint64_t visible = s_.visible[int64_t(slot) * shape_.tile_tokens + token];
      if (visible == 0) continue;
      // Finite even where all scores are NaN or -inf, to tell it from a row that sees nothing.
      if (!sees) largest = std::max(largest, std::numeric_limits<float>::lowest());
      sees = true;
      float* p = s_.scores + row * stride + int64_t(slot) * kTileColumns;
      Vec sums = Load(lanes);
      const bool by_column = s_.slots[slot].by_column;
      for (int32_t c = 0; c < kTileColumns; c += kLanes) {
        const Vec weight = Exp2(Sub(Load(p + c), Set(largest)));
        Store(p + c, weight);
        if (by_column) sums = Add(sums, weight);
      }
      Store(lanes, sums);
      if (by_column) continue;
      for (uint64_t bits = visible; bits != 0; bits &= bits - 1) {
        const int32_t c = __builtin_ctzll(bits);
        const int32_t pending = s_.slots[slot].first_column + c - sequence_.num_committed;
        lanes[(sequence_.num_committed + sequence_.depths[pending]) % kLanes] += p[c];
      }
    }
    maxima[0] = largest;
  }

  void WeighValues(int32_t slot, int32_t tokens, int64_t stride) {
    const uint64_t* visible = s_.visible + int64_t(slot) * shape_.tile_tokens;
    const float* weights = s_.scores + int64_t(slot) * kTileColumns;
    uint64_t any = 0, all = ~uint64_t{0};
    for (int32_t i = 0; i < tokens; ++i) {
      any |= visible[i];
      all &= visible[i];
    }
    if (any == all) {
      WeighRows(any, slot, weights, stride, tokens * shape_.group, s_.chunk_acc);
      return;
    }
    // Token by token: a hidden value may be NaN, and zero times NaN is not zero.
    for (int32_t i = 0; i < tokens; ++i) {
      const int32_t row = i * shape_.group;
      WeighRows(visible[i], slot, weights + row * stride, stride, shape_.group,
                s_.chunk_acc + int64_t(row) * head_dim_);
    }
  }

  void WeighRows(uint64_t columns, int32_t slot, const float* weights, int64_t stride, int32_t rows,
                 float* out) const {
    uint8_t list[kTileColumns];
    int32_t count = 0;
    for (uint64_t bits = columns; bits != 0; bits &= bits - 1) {
      list[count++] = static_cast<uint8_t>(__builtin_ctzll(bits));
    }
    if (count == 0) return;
    AddValues(weights, stride, rows, list, Keys(slot), value_offset_, count, out, head_dim_);
  }

  const AttentionArgs& args_;
  const AttentionShape& shape_;
  const AttentionUnit& unit_;
  const SequencePlan& sequence_;
  const MaskPlan& plan_;
  const int32_t block_;
  const int32_t head_dim_;
  const int64_t value_offset_;  // elements from a key to its value
  Scratch s_;
  int32_t num_slots_ = 0;
};

/*! \brief Merges a chunk's partial result into what came before it. */
inline void Merge(float m, float l, const float* acc, int32_t head_dim, float* state,
                  float* total) {
  if (m == kMinusInfinity) return;
  if (state[0] == kMinusInfinity) {
    state[0] = m;
    state[1] = l;
    std::memcpy(total, acc, sizeof(float) * head_dim);
    return;
  }
  const float largest = std::max(state[0], m);
  const float before = Exp2(state[0] - largest), now = Exp2(m - largest);
  state[0] = largest;
  state[1] = state[1] * before + l * now;
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    Store(total + d, Fma(Load(acc + d), Set(now), Mul(Load(total + d), Set(before))));
  }
}

/*! \brief Writes the output of the unit's rows from their merged results. */
inline void WriteRows(const AttentionArgs& args, const AttentionShape& shape,
                      const AttentionUnit& unit, const Scratch& s) {
  const int32_t rows = (unit.token_end - unit.token_begin) * shape.group;
  for (int32_t r = 0; r < rows; ++r) {
    const int64_t token =
        args.sequences[unit.sequence].row_begin + unit.token_begin + r / shape.group;
    const int32_t head = unit.kv_head * shape.group + r % shape.group;
    float m = s.state[2 * r], l = s.state[2 * r + 1], factor = 1.f;
    const bool sees = m != kMinusInfinity;
    if (args.sinks != nullptr) {
      const float sink = args.sinks[head] * kLog2E;
      const float largest = std::max(m, sink);
      factor = sees ? Exp2(m - largest) : 0.f;
      l = (sees ? l * factor : 0.f) + Exp2(sink - largest);
      m = largest;
    }
    if (args.lse != nullptr) {
      args.lse[token * args.num_qo_heads + head] =
          m == kMinusInfinity ? m : (m + std::log2(l)) * kLn2;
    }
    float* acc = s.acc + int64_t(r) * args.head_dim;
    for (int32_t d = 0; d < args.head_dim; d += kLanes) {
      Store(acc + d, sees ? Div(Mul(Load(acc + d), Set(factor)), Set(l)) : Zero());
    }
    const int64_t at = token * args.out_row_stride + int64_t(head) * args.head_dim;
    for (int32_t d = 0; d < args.head_dim; ++d) {
      if (args.out_dtype == DType::kFloat32) {
        static_cast<float*>(args.out)[at + d] = acc[d];
      } else if (args.out_dtype == DType::kFloat16) {
        FromFloat(acc[d], static_cast<Float16*>(args.out) + at + d);
      } else {
        FromFloat(acc[d], static_cast<BFloat16*>(args.out) + at + d);
      }
    }
  }
}

inline void ClearState(const Scratch& s, int32_t rows) {
  for (int32_t r = 0; r < rows; ++r) {
    s.state[2 * r] = kMinusInfinity;
    s.state[2 * r + 1] = 0.f;
  }
}

template <typename T>
void AttendPages(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
                 float* scratch) {
  UnitPass<T> pass(args, shape, unit, scratch);
  const Scratch& s = pass.scratch();
  const int32_t head_dim = args.head_dim;
  const int32_t unit_rows = (unit.token_end - unit.token_begin) * shape.group;
  if (unit.partials == nullptr) ClearState(s, unit_rows);
  pass.ForEachPartial([&](int32_t ordinal, int32_t first, int32_t rows) {
    for (int32_t r = 0; r < rows; ++r) {
      const float m = s.maxima[r * kLanes], l = SumLanes(s.lanes + r * kLanes);
      const float* acc = s.chunk_acc + int64_t(r) * head_dim;
      if (unit.partials == nullptr) {
        Merge(m, l, acc, head_dim, s.state + 2 * (first + r),
              s.acc + int64_t(first + r) * head_dim);
      } else {
        float* partial =
            unit.partials + (int64_t(ordinal) * unit_rows + first + r) * (head_dim + 2);
        partial[0] = m;
        partial[1] = l;
        std::memcpy(partial + 2, acc, sizeof(float) * head_dim);
      }
    }
  });
  if (unit.partials == nullptr) WriteRows(args, shape, unit, s);
}

void Attend(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
            float* scratch) {
  switch (args.kv_dtype) {
    case DType::kFloat32:
      return AttendPages<float>(args, shape, unit, scratch);
    case DType::kFloat16:
      return AttendPages<Float16>(args, shape, unit, scratch);
    case DType::kBFloat16:
      return AttendPages<BFloat16>(args, shape, unit, scratch);
  }
}

void Finish(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
            int32_t num_chunks, float* scratch) {
  const Scratch s = Layout(args, shape, scratch);
  const int32_t rows = (unit.token_end - unit.token_begin) * shape.group;
  ClearState(s, rows);
  const float* partial = unit.partials;
  for (int32_t chunk = 0; chunk < num_chunks; ++chunk) {
    for (int32_t r = 0; r < rows; ++r, partial += args.head_dim + 2) {
      Merge(partial[0], partial[1], partial + 2, args.head_dim, s.state + 2 * r,
            s.acc + int64_t(r) * args.head_dim);
    }
  }
  WriteRows(args, shape, unit, s);
}

int64_t ScratchFloats(const AttentionArgs& args, const AttentionShape& shape) {
  return Layout(args, shape, nullptr).size;
}
