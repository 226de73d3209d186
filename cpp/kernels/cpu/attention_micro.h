// The inner loops of attention over vectors of kLanes floats. Included inside the namespace of an
// instruction set, after its vec_*.h.
//
// Every sum has one fixed order, whatever the number of rows that share the work: a dot product
// adds kLanes partial sums over the head dimension in StoreFolded's order; an output element adds
// its columns one after another.

constexpr int kLineBytes = 64;

struct AddOp {
  template <typename V>
  V operator()(V a, V b) const {
    return Add(a, b);
  }
};

struct MaxOp {
  template <typename V>
  V operator()(V a, V b) const {
    return Max(a, b);
  }
};

/*!
 * \brief Scores of MR query rows with four keys: scores[r * stride + i] = q_r . k_i.
 * \param ahead Where kAhead: fetches what lies so many elements behind each key.
 */
template <int MR, bool kAhead, typename T>
inline void ScoreQuad(const float* q, int32_t head_dim, const T* const* keys, int64_t ahead,
                      float* scores, int64_t stride) {
  Vec sums[MR][4];
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < 4; ++i) sums[r][i] = Zero();
  }
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    if (kAhead && d * sizeof(T) % kLineBytes == 0) {
      for (int i = 0; i < 4; ++i) Prefetch(keys[i] + ahead + d);
    }
    Vec rows[MR];
    for (int r = 0; r < MR; ++r) rows[r] = Load(q + int64_t(r) * head_dim + d);
    for (int i = 0; i < 4; ++i) {
      const Vec key = Load(keys[i] + d);
      for (int r = 0; r < MR; ++r) sums[r][i] = Fma(rows[r], key, sums[r][i]);
    }
  }
  for (int r = 0; r < MR; ++r) {
    StoreFolded(scores + r * stride, sums[r][0], sums[r][1], sums[r][2], sums[r][3], AddOp());
  }
}

/*! \brief Calls f with an integral constant equal to rows, in [1, kMaxRows]. */
template <typename F, int kRows = kMaxRows>
inline void WithRows(int32_t rows, F&& f) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return WithRows<F, kRows - 1>(rows, std::forward<F>(f));
  }
  f(std::integral_constant<int, kRows>());
}

/*! \brief ScoreQuad for any number of rows; the first of them fetch ahead where ahead is not 0. */
template <typename T>
inline void ScoreRows(const float* q, int32_t rows, int32_t head_dim, const T* const* keys,
                      int64_t ahead, float* scores, int64_t stride) {
  for (int32_t row = 0; row < rows;) {
    const int32_t count = std::min(rows - row, kMaxRows);
    WithRows(count, [&](auto mr) {
      const float* first = q + int64_t(row) * head_dim;
      if (ahead != 0 && row == 0) {
        ScoreQuad<mr.value, true>(first, head_dim, keys, ahead, scores, stride);
      } else {
        ScoreQuad<mr.value, false>(first, head_dim, keys, 0, scores + row * stride, stride);
      }
    });
    row += count;
  }
}

/*! \brief Some columns of a slot, and where their values are. */
template <typename T>
struct ValueList {
  const uint8_t* columns;  // [count] indices into keys
  int32_t count;
  const T* const* keys;  // value_offset elements before the values
  int64_t value_offset;
  const T* const* next;  // keys to fetch meanwhile, by the same indices; nullptr: none
};

/*! \brief Adds weighted values to MR rows of ND vectors: out_r += sum_j weights_r[columns[j]] v_j.
 */
template <int MR, int ND, bool kAhead, typename T>
inline void AddValuesBlock(const float* weights, int64_t stride, const ValueList<T>& list,
                           int32_t d, float* out, int32_t head_dim) {
  Vec sums[MR][ND];
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < ND; ++i) sums[r][i] = Load(out + int64_t(r) * head_dim + d + i * kLanes);
  }
  const int64_t offset = list.value_offset + d;
  for (int32_t j = 0; j < list.count; ++j) {
    const int32_t column = list.columns[j];
    const T* value = list.keys[column] + offset;
    if (kAhead) {
      const char* next = reinterpret_cast<const char*>(list.next[column] + d);
      for (size_t byte = 0; byte < ND * kLanes * sizeof(T); byte += kLineBytes) {
        Prefetch(next + byte);
      }
    }
    Vec w[MR];
    for (int r = 0; r < MR; ++r) w[r] = Set(weights[column + r * stride]);
    for (int i = 0; i < ND; ++i) {
      const Vec v = Load(value + i * kLanes);
      for (int r = 0; r < MR; ++r) sums[r][i] = Fma(w[r], v, sums[r][i]);
    }
  }
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < ND; ++i) Store(out + int64_t(r) * head_dim + d + i * kLanes, sums[r][i]);
  }
}

/*! \brief AddValuesBlock for any number of rows, for ND vectors of the head. */
template <int ND, typename T>
inline void AddValuesRows(const float* weights, int64_t stride, int32_t rows,
                          const ValueList<T>& list, int32_t d, float* out, int32_t head_dim) {
  for (int32_t row = 0; row < rows;) {
    const int32_t count = std::min(rows - row, kMaxRows);
    WithRows(count, [&](auto mr) {
      const float* first = weights + row * stride;
      float* to = out + int64_t(row) * head_dim;
      if (list.next != nullptr && row == 0) {
        AddValuesBlock<mr.value, ND, true>(first, stride, list, d, to, head_dim);
      } else {
        AddValuesBlock<mr.value, ND, false>(first, stride, list, d, to, head_dim);
      }
    });
    row += count;
  }
}

/*! \brief out[r] += sum over the listed columns of weights[r * stride + column] * their values. */
template <typename T>
inline void AddValues(const float* weights, int64_t stride, int32_t rows, const ValueList<T>& list,
                      float* out, int32_t head_dim) {
  int32_t d = 0;
  for (; d + 4 * kLanes <= head_dim; d += 4 * kLanes) {
    AddValuesRows<4>(weights, stride, rows, list, d, out, head_dim);
  }
  for (; d < head_dim; d += kLanes) {
    AddValuesRows<1>(weights, stride, rows, list, d, out, head_dim);
  }
}

/*! \brief 2^x for x <= 0, to float32's precision; 0 below 2^-125; NaN stays NaN. */
inline Vec Exp2(Vec x) {
  const Vec n = RoundToInt(x);
  const Vec f = Sub(x, n);
  // Fitted to 2^f on [-1/2, 1/2] for the least relative error.
  Vec y = Set(0x1.41d332p-13f);
  y = Fma(y, f, Set(0x1.5f456ap-10f));
  y = Fma(y, f, Set(0x1.3b2dbcp-7f));
  y = Fma(y, f, Set(0x1.c6aed4p-5f));
  y = Fma(y, f, Set(0x1.ebfbdap-3f));
  y = Fma(y, f, Set(0x1.62e430p-1f));
  y = Fma(y, f, Set(1.f));
  return ZeroBelow(x, Set(-125.f), Scale2(y, n));
}
