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
 * \brief Fetches runs of memory while others are worked on: line after line, which the memory
 * delivers faster than a jump from row to row.
 */
class Fetcher {
 public:
  Fetcher() = default;
  Fetcher(const uintptr_t* runs, int64_t run_bytes)
      : runs_(runs), run_bytes_(run_bytes), line_(*runs), end_(*runs + run_bytes) {}

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
    line_ = *++runs_;
    end_ = line_ + run_bytes_;
  }

  const uintptr_t* runs_ = nullptr;  // addresses, one more than there are runs
  int64_t run_bytes_ = 0;
  uintptr_t line_ = 0, end_ = 0;
  int32_t owed_ = 0;  // bytes, less than a line
};

/*!
 * \brief Scores of MR query rows with four keys: scores[r * stride + i] = q_r . k_i.
 * \tparam kShare Fetches one part in so many of as much as the keys; 0: nothing.
 */
template <int MR, int kShare, typename T>
inline void ScoreQuad(const float* q, int32_t head_dim, const T* const* keys, Fetcher* fetcher,
                      float* scores, int64_t stride) {
  Fetcher fetch;
  if constexpr (kShare > 0) fetch = *fetcher;
  Vec sums[MR][4];
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < 4; ++i) sums[r][i] = Zero();
  }
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    if constexpr (kShare > 0) fetch.Fetch<4 * kLanes * sizeof(T) / kShare>();
    Vec rows[MR];
    for (int r = 0; r < MR; ++r) rows[r] = Load(q + int64_t(r) * head_dim + d);
    for (int i = 0; i < 4; ++i) {
      const Vec key = InRegister(Load(keys[i] + d));
      for (int r = 0; r < MR; ++r) sums[r][i] = Fma(rows[r], key, sums[r][i]);
    }
  }
  if constexpr (kShare > 0) *fetcher = fetch;
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

/*! \brief ScoreQuad for any number of rows. The first few fetch meanwhile, at an even pace: memory
 * takes only so many requests at once, and makes the processor wait for room. */
template <typename T>
inline void ScoreRows(const float* q, int32_t rows, int32_t head_dim, const T* const* keys,
                      Fetcher* fetcher, float* scores, int64_t stride) {
  for (int32_t row = 0, part = 0; row < rows; ++part) {
    const int32_t count = NextRows(rows - row);
    WithRows(count, [&](auto mr) {
      const float* first = q + int64_t(row) * head_dim;
      float* to = scores + row * stride;
      if (fetcher == nullptr || part > 1) {
        ScoreQuad<mr.value, 0>(first, head_dim, keys, nullptr, to, stride);
      } else if (count == rows) {
        ScoreQuad<mr.value, 1>(first, head_dim, keys, fetcher, to, stride);
      } else {
        ScoreQuad<mr.value, 2>(first, head_dim, keys, fetcher, to, stride);
      }
    });
    row += count;
  }
}

/*! \brief Moves the weights of listed columns, in ascending order, to the front of each row. */
inline void MoveTogether(float* weights, int64_t stride, int32_t rows, const int32_t* columns,
                         int32_t count) {
  for (int32_t r = 0; r < rows; ++r, weights += stride) {
    for (int32_t i = 0; i < count; ++i) weights[i] = weights[columns[i]];
  }
}

/*! \brief Some columns, and how much they weigh for query rows. */
template <typename T>
struct WeightedValues {
  const T* const* keys;  // [count]
  int64_t offset;        // elements from a key to its value
  int32_t count;
  const float* weights;  // of row r: weights + r * stride, [count]
  int64_t stride;
  Fetcher* fetcher;  // what to fetch meanwhile, as much as the values; nullptr: nothing
};

/*! \brief Adds weighted values to MR query rows of ND vectors: out_r += sum_j w_rj v_j. */
template <int MR, int ND, bool kAhead, typename T>
inline void AddValuesBlock(const WeightedValues<T>& from, int32_t row, int32_t d, float* out,
                           int32_t head_dim) {
  out += int64_t(row) * head_dim + d;
  Vec sums[MR][ND];
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < ND; ++i) sums[r][i] = Load(out + int64_t(r) * head_dim + i * kLanes);
  }
  const T* const* keys = from.keys;
  const int64_t offset = from.offset + d;
  const float* weights = from.weights + row * from.stride;
  const int64_t stride = from.stride;
  Fetcher fetch;
  if (kAhead) fetch = *from.fetcher;
  for (const T* const* end = keys + from.count; keys < end; ++keys, ++weights) {
    const T* value = *keys + offset;
    if (kAhead) fetch.Fetch<ND * kLanes * sizeof(T)>();
    // The smaller side is held in registers: together with the sums there is just room for it.
    if constexpr (MR < ND) {
      Vec w[MR];
      for (int r = 0; r < MR; ++r) w[r] = Set(weights[r * stride]);
      for (int i = 0; i < ND; ++i) {
        const Vec v = InRegister(Load(value + i * kLanes));
        for (int r = 0; r < MR; ++r) sums[r][i] = Fma(w[r], v, sums[r][i]);
      }
    } else {
      Vec v[ND];
      for (int i = 0; i < ND; ++i) v[i] = InRegister(Load(value + i * kLanes));
      for (int r = 0; r < MR; ++r) {
        const Vec w = InRegister(Set(weights[r * stride]));
        for (int i = 0; i < ND; ++i) sums[r][i] = Fma(w, v[i], sums[r][i]);
      }
    }
  }
  if (kAhead) *from.fetcher = fetch;
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < ND; ++i) Store(out + int64_t(r) * head_dim + i * kLanes, sums[r][i]);
  }
}

/*! \brief AddValuesBlock for rows [begin, end), MR at a time, and the vectors [d, head_dim): ND at
 * a time, then what is left. */
template <int MR, int ND, typename T>
inline void AddValuesDims(const WeightedValues<T>& from, int32_t begin, int32_t end, int32_t d,
                          float* out, int32_t head_dim) {
  for (; d + ND * kLanes <= head_dim; d += ND * kLanes) {
    for (int32_t row = begin; row < end; row += MR) {
      if (from.fetcher != nullptr && row == 0) {
        AddValuesBlock<MR, ND, true>(from, row, d, out, head_dim);
      } else {
        AddValuesBlock<MR, ND, false>(from, row, d, out, head_dim);
      }
    }
  }
  if constexpr (ND > 1) AddValuesDims<MR, (ND + 1) / 2>(from, begin, end, d, out, head_dim);
}

/*! \brief out[r] += the sum of the values, weighted for row r. */
template <typename T>
inline void AddValues(const WeightedValues<T>& from, int32_t rows, float* out, int32_t head_dim) {
  const int32_t many = rows - rows % kValueRows;
  if (many > 0) AddValuesDims<kValueRows, kValueVectors>(from, 0, many, 0, out, head_dim);
  if (many == rows) return;
  WithRows(rows - many, [&](auto mr) {
    AddValuesDims<mr.value, mr.value == 1 ? 8 : 4>(from, many, rows, 0, out, head_dim);
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
