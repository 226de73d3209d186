// Attention of one unit of work, for one instruction set. Included inside the namespace of that
// set, after attention_tile.h.
//
// Partial results are merged in the order of chunks, so that the result is the same however the
// work was cut. (Online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867, eq. 6; partial
// results over the sequence: Dao et al. 2023, "Flash-Decoding".)

template <typename From>
inline void PackRow(const From* from, int32_t size, float scale, float* to) {
  for (int32_t i = 0; i < size; i += kLanes) Store(to + i, Mul(Load(from + i), Set(scale)));
}

/*! \brief The query rows of a unit in float32, one after another. */
inline void PackQueries(const AttentionArgs& args, const AttentionShape& shape,
                        const AttentionUnit& unit, float* to) {
  const int64_t row_begin = args.sequences[unit.sequence].row_begin;
  const int32_t size = RowsPerToken(shape, unit) * args.head_dim;
  const bool plain = args.soft_cap <= 0 && args.alibi_slopes == nullptr;
  const float scale = plain ? args.sm_scale * kLog2E : 1.f;
  for (int32_t token = unit.token_begin; token < unit.token_end; ++token, to += size) {
    const int64_t row = unit.shared != nullptr ? unit.shared[token].row : row_begin + token;
    const int64_t at =
        row * args.q_row_stride + int64_t(unit.kv_head) * shape.group * args.head_dim;
    if (args.q_dtype == DType::kFloat32) {
      PackRow(static_cast<const float*>(args.q) + at, size, scale, to);
    } else if (args.q_dtype == DType::kFloat16) {
      PackRow(static_cast<const Float16*>(args.q) + at, size, scale, to);
    } else {
      PackRow(static_cast<const BFloat16*>(args.q) + at, size, scale, to);
    }
  }
}

inline void ClearTotals(const Scratch& s, int32_t rows) {
  std::fill_n(s.total_m, rows, kMinusInfinity);
  std::fill_n(s.total_l, rows, 0.f);
}

/*! \brief Merges a chunk's partial results (m, l, acc of each row) into the totals from `first`. */
inline void Merge(const float* m, const float* l, const float* acc, int32_t rows, int32_t head_dim,
                  const Scratch& s, int32_t first) {
  float before[kLanes], now[kLanes];
  for (int32_t row = 0; row < rows; ++row) {
    float* total_m = s.total_m + first + row;
    float* total_l = s.total_l + first + row;
    float* total = s.total + int64_t(first + row) * head_dim;
    const float* add = acc + int64_t(row) * head_dim;
    if (row % kLanes == 0) {
      // May read behind the last row, where it finds room, and uses nothing of it.
      const Vec largest = Max(Load(m + row), Load(total_m));
      Store(before, Exp2(Sub(Load(total_m), largest)));
      Store(now, Exp2(Sub(Load(m + row), largest)));
    }
    if (m[row] == kMinusInfinity) continue;
    if (*total_m == kMinusInfinity) {
      *total_m = m[row];
      *total_l = l[row];
      std::copy_n(add, head_dim, total);
      continue;
    }
    const float old_scale = before[row % kLanes], new_scale = now[row % kLanes];
    *total_m = std::max(*total_m, m[row]);
    *total_l = *total_l * old_scale + l[row] * new_scale;
    for (int32_t d = 0; d < head_dim; d += kLanes) {
      Store(total + d, Fma(Load(add + d), Set(new_scale), Mul(Load(total + d), Set(old_scale))));
    }
  }
}

/*! \brief 2^x of one number. */
inline float Exp2(float x) {
  float lanes[kLanes];
  Store(lanes, Exp2(Set(x)));
  return lanes[0];
}

/*! \brief Writes the output of the unit's rows from their totals. */
inline void WriteRows(const AttentionArgs& args, const AttentionShape& shape,
                      const AttentionUnit& unit, const Scratch& s) {
  const int32_t per_token = RowsPerToken(shape, unit);
  const int32_t rows = (unit.token_end - unit.token_begin) * per_token;
  for (int32_t r = 0; r < rows; ++r) {
    const int64_t token =
        args.sequences[unit.sequence].row_begin + unit.token_begin + r / per_token;
    const int32_t head = unit.kv_head * shape.group + r % per_token;
    float m = s.total_m[r], l = s.total_l[r], factor = 1.f;
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
    float* total = s.total + int64_t(r) * args.head_dim;
    for (int32_t d = 0; d < args.head_dim; d += kLanes) {
      Store(total + d, sees ? Div(Mul(Load(total + d), Set(factor)), Set(l)) : Zero());
    }
    const int64_t at = token * args.out_row_stride + int64_t(head) * args.head_dim;
    if (args.out_dtype == DType::kFloat32) {
      std::copy_n(total, args.head_dim, static_cast<float*>(args.out) + at);
    } else if (args.out_dtype == DType::kFloat16) {
      auto* out = static_cast<Float16*>(args.out) + at;
      for (int32_t d = 0; d < args.head_dim; ++d) FromFloat(total[d], out + d);
    } else {
      auto* out = static_cast<BFloat16*>(args.out) + at;
      for (int32_t d = 0; d < args.head_dim; ++d) FromFloat(total[d], out + d);
    }
  }
}

/*! \brief Partial results of one chunk, as a unit with `partials` keeps them. */
struct Partials {
  float *m, *l, *acc;

  Partials(float* partials, int32_t rows, int32_t head_dim, int32_t ordinal)
      : m(partials + int64_t(ordinal) * PartialFloats(rows, head_dim)),
        l(m + rows + kPartialPadding),
        acc(l + rows) {}

  /*! \brief Keeps the results of a tile from its row `from` on, as those of rows from `to` on. */
  void Keep(const Scratch& s, int32_t from, int32_t to, int32_t rows, int32_t head_dim) const {
    std::copy_n(s.m + from, rows, m + to);
    std::copy_n(s.l + from, rows, l + to);
    std::copy_n(s.acc + int64_t(from) * head_dim, int64_t(rows) * head_dim,
                acc + int64_t(to) * head_dim);
  }
};

template <typename T>
void AttendPages(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
                 float* scratch) {
  Scratch s = Layout(args, shape, scratch);
  const ColumnFinder<T> finder(args, unit);
  const Positions positions(args.sequences[unit.sequence]);
  TilePass<T> pass(args, shape, unit, positions, finder.value_offset(), s);
  const int64_t packed_offset = int64_t{kPackedSlots} * kTileColumns * (args.head_dim + kPadding);
  TilePass<float> packed_pass(args, shape, unit, positions, packed_offset, s);
  const int32_t head_dim = args.head_dim;
  const int32_t per_token = RowsPerToken(shape, unit);
  const int32_t unit_rows = (unit.token_end - unit.token_begin) * per_token;
  ClearTotals(s, unit_rows);
  PackQueries(args, shape, unit, s.q);

  ChunkWalker walker(args.masks.plan(unit.sequence, unit.kv_head), unit.token_begin / kBlockRows);
  bool found = walker.Next();
  for (int32_t skip = 0; found && skip < unit.chunk_begin; ++skip) found = walker.Next();
  if (found) finder.Find(walker, &s.chunks[unit.chunk_begin % 2]);
  for (int32_t ordinal = unit.chunk_begin; found && ordinal < unit.chunk_end; ++ordinal) {
    const ChunkColumns& chunk = s.chunks[ordinal % 2];
    ChunkColumns& next = s.chunks[(ordinal + 1) % 2];
    found = ordinal + 1 < unit.chunk_end && walker.Next();
    next.num_slots = 0;
    if (found) finder.Find(walker, &next);
    const bool packs =
        unit.num_heads == 1 && PacksChunks(args, unit_rows) && chunk.num_slots <= kPackedSlots;
    ChunkColumns packed;
    if (packs) packed = PackChunk<T>(chunk, finder.value_offset(), head_dim, packed_offset, s);
    for (int32_t token = unit.token_begin; token < unit.token_end; token += shape.tile_tokens) {
      const int32_t end = std::min(token + shape.tile_tokens, unit.token_end);
      if (packs) {
        packed_pass.Run(token, end, packed, nullptr);
      } else {
        pass.Run(token, end, chunk, token == unit.token_begin ? &next : nullptr);
      }
      const int32_t first = (token - unit.token_begin) * per_token;
      const int32_t rows = (end - token) * per_token;
      if (unit.shared != nullptr) {
        for (int32_t i = token; i < end; ++i) {
          const SharedToken& own = unit.shared[i];
          Partials(own.partials, own.unit_rows, head_dim, ordinal)
              .Keep(s, (i - token) * per_token, own.first_row, per_token, head_dim);
        }
      } else if (unit.partials != nullptr) {
        Partials(unit.partials, unit_rows, head_dim, ordinal).Keep(s, 0, first, rows, head_dim);
      } else {
        Merge(s.m, s.l, s.acc, rows, head_dim, s, first);
      }
    }
  }
  if (unit.partials == nullptr && unit.shared == nullptr) WriteRows(args, shape, unit, s);
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
  const int32_t rows = (unit.token_end - unit.token_begin) * RowsPerToken(shape, unit);
  ClearTotals(s, rows);
  for (int32_t ordinal = 0; ordinal < num_chunks; ++ordinal) {
    const Partials partial(unit.partials, rows, args.head_dim, ordinal);
    Merge(partial.m, partial.l, partial.acc, rows, args.head_dim, s, 0);
  }
  WriteRows(args, shape, unit, s);
}

int64_t ScratchFloats(const AttentionArgs& args, const AttentionShape& shape) {
  return Layout(args, shape, nullptr).size;
}
