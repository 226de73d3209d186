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
 * \brief Fetches rows of memory while others are worked on: line after line, which the memory
 * delivers faster than a jump from row to row.
 */
class Fetcher {
 public:
  Fetcher() = default;
  Fetcher(const uintptr_t* rows, int64_t row_bytes)
      : rows_(rows), row_bytes_(row_bytes), line_(*rows), end_(*rows + row_bytes) {}

  /*! \brief Fetches that much more. */
  template <int kBytes>
  void Fetch() {
    for (int byte = kLineBytes; byte <= kBytes; byte += kLineBytes) FetchLine();
    if constexpr (kBytes % kLineBytes != 0) {
      owed_ += kBytes % kLineBytes;
      if (owed_ >= kLineBytes) {
        owed_ -= kLineBytes;
        FetchLine();
      }
    }
  }

 private:
  void FetchLine() {
    Prefetch(line_);
    line_ += kLineBytes;
    if (line_ < end_) return;
    line_ = *++rows_;
    end_ = line_ + row_bytes_;
  }

  const uintptr_t* rows_ = nullptr;  // addresses, one more than there are rows
  int64_t row_bytes_ = 0;
  uintptr_t line_ = 0, end_ = 0;
  int32_t owed_ = 0;  // bytes, less than a line
};

/*!
 * \brief Scores of MR query rows with four keys: scores[r * stride + i] = q_r . k_i.
 * \param fetcher Where kAhead: what to fetch meanwhile, as much as the keys.
 */
template <int MR, bool kAhead, typename T>
inline void ScoreQuad(const float* q, int32_t head_dim, const T* const* keys, Fetcher* fetcher,
                      float* scores, int64_t stride) {
  Fetcher fetch;
  if (kAhead) fetch = *fetcher;
  Vec sums[MR][4];
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < 4; ++i) sums[r][i] = Zero();
  }
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    if (kAhead) fetch.Fetch<4 * kLanes * sizeof(T)>();
    Vec rows[MR];
    for (int r = 0; r < MR; ++r) rows[r] = Load(q + int64_t(r) * head_dim + d);
    for (int i = 0; i < 4; ++i) {
      const Vec key = InRegister(Load(keys[i] + d));
      for (int r = 0; r < MR; ++r) sums[r][i] = Fma(rows[r], key, sums[r][i]);
    }
  }
  if (kAhead) *fetcher = fetch;
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

/*! \brief How many of the rows that are left to work on next: a single one would keep the
 * processor waiting for its sums, so that none is left over. */
inline int32_t NextRows(int32_t left) {
  if (left <= kMaxRows) return left;
  return left == kMaxRows + 1 ? (left + 1) / 2 : kMaxRows;
}

/*! \brief ScoreQuad for any number of rows; the first of them fetch meanwhile. */
template <typename T>
inline void ScoreRows(const float* q, int32_t rows, int32_t head_dim, const T* const* keys,
                      Fetcher* fetcher, float* scores, int64_t stride) {
  for (int32_t row = 0; row < rows;) {
    const int32_t count = NextRows(rows - row);
    WithRows(count, [&](auto mr) {
      const float* first = q + int64_t(row) * head_dim;
      if (fetcher != nullptr && row == 0) {
        ScoreQuad<mr.value, true>(first, head_dim, keys, fetcher, scores, stride);
      } else {
        ScoreQuad<mr.value, false>(first, head_dim, keys, nullptr, scores + row * stride, stride);
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
  Fetcher* fetcher;  // what to fetch meanwhile, as much as the values; nullptr: nothing
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
  Fetcher fetch;
  if (kAhead) fetch = *list.fetcher;
  for (int32_t j = 0; j < list.count; ++j) {
    const int32_t column = list.columns[j];
    const T* value = list.keys[column] + offset;
    if (kAhead) fetch.Fetch<ND * kLanes * sizeof(T)>();
    // The smaller side is held in registers: together with the sums there is just room for it.
    if constexpr (MR < ND) {
      Vec w[MR];
      for (int r = 0; r < MR; ++r) w[r] = Set(weights[column + r * stride]);
      for (int i = 0; i < ND; ++i) {
        const Vec v = InRegister(Load(value + i * kLanes));
        for (int r = 0; r < MR; ++r) sums[r][i] = Fma(w[r], v, sums[r][i]);
      }
    } else {
      Vec v[ND];
      for (int i = 0; i < ND; ++i) v[i] = InRegister(Load(value + i * kLanes));
      for (int r = 0; r < MR; ++r) {
        const Vec w = InRegister(Set(weights[column + r * stride]));
        for (int i = 0; i < ND; ++i) sums[r][i] = Fma(w, v[i], sums[r][i]);
      }
    }
  }
  if (kAhead) *list.fetcher = fetch;
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < ND; ++i) Store(out + int64_t(r) * head_dim + d + i * kLanes, sums[r][i]);
  }
}

/*! \brief AddValuesBlock for all rows, MR at a time, and ND vectors of the head. */
template <int MR, int ND, typename T>
inline void AddValuesRows(const float* weights, int64_t stride, int32_t rows,
                          const ValueList<T>& list, int32_t d, float* out, int32_t head_dim) {
  for (int32_t row = 0; row < rows; row += MR) {
    const float* first = weights + row * stride;
    float* to = out + int64_t(row) * head_dim;
    if (list.fetcher != nullptr && row == 0) {
      AddValuesBlock<MR, ND, true>(first, stride, list, d, to, head_dim);
    } else {
      AddValuesBlock<MR, ND, false>(first, stride, list, d, to, head_dim);
    }
  }
}

/*! \brief AddValuesRows for the vectors [d, head_dim): ND at a time, then what is left. */
template <int MR, int ND, typename T>
inline void AddValuesDims(const float* weights, int64_t stride, int32_t rows,
                          const ValueList<T>& list, int32_t d, float* out, int32_t head_dim) {
  for (; d + ND * kLanes <= head_dim; d += ND * kLanes) {
    AddValuesRows<MR, ND>(weights, stride, rows, list, d, out, head_dim);
  }
  if constexpr (ND > 1)
    AddValuesDims<MR, (ND + 1) / 2>(weights, stride, rows, list, d, out, head_dim);
}

/*! \brief out[r] += sum over the listed columns of weights[r * stride + column] * their values. */
template <typename T>
inline void AddValues(const float* weights, int64_t stride, int32_t rows, const ValueList<T>& list,
                      float* out, int32_t head_dim) {
  const int32_t many = rows - rows % kValueRows;
  if (many > 0) {
    AddValuesDims<kValueRows, kValueVectors>(weights, stride, many, list, 0, out, head_dim);
  }
  if (many == rows) return;
  ValueList<T> rest = list;
  if (many > 0) rest.fetcher = nullptr;
  weights += many * stride;
  out += int64_t(many) * head_dim;
  WithRows(rows - many, [&](auto mr) {
    AddValuesDims<mr.value, mr.value == 1 ? 8 : 4>(weights, stride, rows - many, rest, 0, out,
                                                   head_dim);
  });
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
