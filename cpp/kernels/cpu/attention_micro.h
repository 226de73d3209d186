// The inner loops of attention over vectors of kLanes floats. Included inside the namespace of an
// instruction set, after its vec_*.h.
//
// Every sum has one fixed order, whatever the number of rows that share the work: a dot product
// adds kLanes partial sums over the head dimension in StoreSums' order; an output element adds its
// columns one after another.

/*! \brief Scores of MR query rows with four keys: scores[r * stride + i] = q_r . k_i. */
template <int MR, typename T>
inline void ScoreQuad(const float* q, int32_t head_dim, const T* const* keys, float* scores,
                      int64_t stride) {
  Vec sums[MR][4];
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < 4; ++i) sums[r][i] = Zero();
  }
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    Vec rows[MR];
    for (int r = 0; r < MR; ++r) rows[r] = Load(q + int64_t(r) * head_dim + d);
    for (int i = 0; i < 4; ++i) {
      const Vec key = Load(keys[i] + d);
      for (int r = 0; r < MR; ++r) sums[r][i] = Fma(rows[r], key, sums[r][i]);
    }
  }
  for (int r = 0; r < MR; ++r) {
    StoreSums(scores + r * stride, sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
  }
}

/*! \brief ScoreQuad for any number of rows. */
template <typename T>
inline void ScoreRows(const float* q, int32_t rows, int32_t head_dim, const T* const* keys,
                      float* scores, int64_t stride) {
  int32_t row = 0;
  for (; row + kQkRows <= rows; row += kQkRows) {
    ScoreQuad<kQkRows>(q + int64_t(row) * head_dim, head_dim, keys, scores + row * stride, stride);
  }
  for (; row + 2 <= rows; row += 2) {
    ScoreQuad<2>(q + int64_t(row) * head_dim, head_dim, keys, scores + row * stride, stride);
  }
  if (row < rows) {
    ScoreQuad<1>(q + int64_t(row) * head_dim, head_dim, keys, scores + row * stride, stride);
  }
}

/*! \brief Adds weighted values to MR rows of ND vectors: out_r += sum_j weights_r[columns[j]] v_j.
 */
template <int MR, int ND, typename T>
inline void AddValuesBlock(const float* weights, int64_t stride, const uint8_t* columns,
                           const T* const* keys, int64_t value_offset, int32_t count, int32_t d,
                           float* out, int32_t head_dim) {
  Vec sums[MR][ND];
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < ND; ++i) sums[r][i] = Load(out + int64_t(r) * head_dim + d + i * kLanes);
  }
  for (int32_t j = 0; j < count; ++j) {
    const T* value = keys[columns[j]] + value_offset + d;
    const float* weight = weights + columns[j];
    Vec w[MR];
    for (int r = 0; r < MR; ++r) w[r] = Set(weight[r * stride]);
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
                          const uint8_t* columns, const T* const* keys, int64_t value_offset,
                          int32_t count, int32_t d, float* out, int32_t head_dim) {
  int32_t row = 0;
  for (; row + kPvRows <= rows; row += kPvRows) {
    AddValuesBlock<kPvRows, ND>(weights + row * stride, stride, columns, keys, value_offset, count,
                                d, out + int64_t(row) * head_dim, head_dim);
  }
  for (; row + 2 <= rows; row += 2) {
    AddValuesBlock<2, ND>(weights + row * stride, stride, columns, keys, value_offset, count, d,
                          out + int64_t(row) * head_dim, head_dim);
  }
  if (row < rows) {
    AddValuesBlock<1, ND>(weights + row * stride, stride, columns, keys, value_offset, count, d,
                          out + int64_t(row) * head_dim, head_dim);
  }
}

/*!
 * \brief out[r] += sum over the listed columns of weights[r * stride + column] * value of column.
 * \param keys [64] pointers to keys, value_offset elements before the values; only those of listed
 * columns are followed.
 */
template <typename T>
inline void AddValues(const float* weights, int64_t stride, int32_t rows, const uint8_t* columns,
                      const T* const* keys, int64_t value_offset, int32_t count, float* out,
                      int32_t head_dim) {
  int32_t d = 0;
  for (; d + 4 * kLanes <= head_dim; d += 4 * kLanes) {
    AddValuesRows<4>(weights, stride, rows, columns, keys, value_offset, count, d, out, head_dim);
  }
  for (; d < head_dim; d += kLanes) {
    AddValuesRows<1>(weights, stride, rows, columns, keys, value_offset, count, d, out, head_dim);
  }
}

/*! \brief 2^x for x <= 0, within 2e-8 relative before rounding; 0 below 2^-125; NaN stays NaN. */
inline Vec Exp2(Vec x) {
  const Vec n = RoundToInt(x);
  const Vec f = Sub(x, n);
  Vec y = Set(0x1.41d332p-13f);
  y = Fma(y, f, Set(0x1.5f456ap-10f));
  y = Fma(y, f, Set(0x1.3b2dbcp-7f));
  y = Fma(y, f, Set(0x1.c6aed4p-5f));
  y = Fma(y, f, Set(0x1.ebfbdap-3f));
  y = Fma(y, f, Set(0x1.62e430p-1f));
  y = Fma(y, f, Set(1.f));
  return ZeroBelow(x, Set(-125.f), Scale2(y, n));
}

inline float Exp2(float x) {
  float lanes[kLanes];
  Store(lanes, Exp2(Set(x)));
  return lanes[0];
}

inline float SumLanes(const float* lanes) {
  float sums[kLanes];
  for (int i = 0; i < kLanes; ++i) sums[i] = lanes[i];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  }
  return sums[0];
}
