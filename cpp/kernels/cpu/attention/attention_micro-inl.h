/*!
 * \file kernels/cpu/attention/attention_micro-inl.h
 * \brief The inner loops of attention over vectors of kLanes floats.
 *
 * Every sum has one fixed order, whatever the number of queries that share the work: a dot product
 * adds kLanes partial sums over the head dimension in StoreFolded's order; an output element adds
 * its keys one after another.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_MICRO_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_MICRO_INL_H_

#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/cpu/simd/vec-inl.h"

namespace kvctl {
namespace {

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

/*! \brief Prefetches runs of memory line by line, which is faster than jumping from key to key. */
class Fetcher {
 public:
  Fetcher() = default;
  Fetcher(const uintptr_t* runs, int64_t run_bytes)
      : runs_(runs), run_bytes_(run_bytes), line_(*runs), end_(*runs + run_bytes) {}

  /*! \brief Prefetches the next kBytes. */
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

  const uintptr_t* runs_ = nullptr;  // addresses, one more than the number of runs
  int64_t run_bytes_ = 0;
  uintptr_t line_ = 0, end_ = 0;
  int32_t owed_ = 0;  // bytes, less than a line
};

/*!
 * \brief Scores of MR queries with four keys: scores[r * stride + i] = q_r . k_i.
 * \tparam kShare Prefetches 1/kShare as many bytes as the keys have; 0: nothing.
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
    Vec queries[MR];
    for (int r = 0; r < MR; ++r) queries[r] = Load(q + int64_t(r) * head_dim + d);
    for (int i = 0; i < 4; ++i) {
      const Vec key = InRegister(Load(keys[i] + d));
      for (int r = 0; r < MR; ++r) sums[r][i] = Fma(queries[r], key, sums[r][i]);
    }
  }
  if constexpr (kShare > 0) *fetcher = fetch;
  for (int r = 0; r < MR; ++r) {
    StoreFolded(scores + r * stride, sums[r][0], sums[r][1], sums[r][2], sums[r][3], AddOp());
  }
}

/*! \brief Calls f with `queries`, in [1, kScoreQueries], as an integral constant. */
template <typename F, int kQueries = kScoreQueries>
inline void WithQueries(int32_t queries, F&& f) {
  if constexpr (kQueries > 1) {
    if (queries < kQueries) return WithQueries<F, kQueries - 1>(queries, std::forward<F>(f));
  }
  f(std::integral_constant<int, kQueries>());
}

/*! \brief How many of the remaining queries to process next. A single query would stall on its own
 * sums, so none is left over. */
inline int32_t NextQueries(int32_t left) {
  if (left <= kScoreQueries) return left;
  return left == kScoreQueries + 1 ? (left + 1) / 2 : kScoreQueries;
}

/*! \brief ScoreQuad for any number of queries. The first ones prefetch at an even pace, since
 * memory takes a limited number of requests at once. */
template <typename T>
inline void ScoreQueries(const float* q, int32_t queries, int32_t head_dim, const T* const* keys,
                         Fetcher* fetcher, float* scores, int64_t stride) {
  for (int32_t query = 0, part = 0; query < queries; ++part) {
    const int32_t count = NextQueries(queries - query);
    WithQueries(count, [&](auto mr) {
      const float* first = q + int64_t(query) * head_dim;
      float* to = scores + query * stride;
      if (fetcher == nullptr || part > 1) {
        ScoreQuad<mr.value, 0>(first, head_dim, keys, nullptr, to, stride);
      } else if (count == queries) {
        ScoreQuad<mr.value, 1>(first, head_dim, keys, fetcher, to, stride);
      } else {
        ScoreQuad<mr.value, 2>(first, head_dim, keys, fetcher, to, stride);
      }
    });
    query += count;
  }
}

/*! \brief Moves the weights of the listed keys, in ascending order, to the front of each query's
 * weights. */
inline void MoveTogether(float* weights, int64_t stride, int32_t queries, const int32_t* keys,
                         int32_t count) {
  for (int32_t r = 0; r < queries; ++r, weights += stride) {
    for (int32_t i = 0; i < count; ++i) weights[i] = weights[keys[i]];
  }
}

/*! \brief The values of some keys, and their weights for each query. */
template <typename T>
struct WeightedValues {
  const T* const* keys;  // [count]
  int64_t offset;        // elements from a key to its value
  int32_t count;
  const float* weights;  // of query r: weights + r * stride, [count]
  int64_t stride;
  Fetcher* fetcher;  // prefetches as many bytes as the values have, unless nullptr
};

/*! \brief Adds weighted values to MR queries of ND vectors: out_r += sum_j w_rj v_j. */
template <int MR, int ND, bool kAhead, typename T>
inline void AddValuesBlock(const WeightedValues<T>& from, int32_t query, int32_t d, float* out,
                           int32_t head_dim) {
  out += int64_t(query) * head_dim + d;
  Vec sums[MR][ND];
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < ND; ++i) sums[r][i] = Load(out + int64_t(r) * head_dim + i * kLanes);
  }
  const T* const* keys = from.keys;
  const int64_t offset = from.offset + d;
  const float* weights = from.weights + query * from.stride;
  const int64_t stride = from.stride;
  Fetcher fetch;
  if (kAhead) fetch = *from.fetcher;
  for (const T* const* end = keys + from.count; keys < end; ++keys, ++weights) {
    const T* value = *keys + offset;
    if (kAhead) fetch.Fetch<ND * kLanes * sizeof(T)>();
    // The smaller side is held in registers: it just fits beside the sums.
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

/*! \brief AddValuesBlock for queries [begin, end), MR at a time, and the vectors [d, head_dim), ND
 * at a time and then the rest. */
template <int MR, int ND, typename T>
inline void AddValuesDims(const WeightedValues<T>& from, int32_t begin, int32_t end, int32_t d,
                          float* out, int32_t head_dim) {
  for (; d + ND * kLanes <= head_dim; d += ND * kLanes) {
    for (int32_t query = begin; query < end; query += MR) {
      if (from.fetcher != nullptr && query == 0) {
        AddValuesBlock<MR, ND, true>(from, query, d, out, head_dim);
      } else {
        AddValuesBlock<MR, ND, false>(from, query, d, out, head_dim);
      }
    }
  }
  if constexpr (ND > 1) AddValuesDims<MR, (ND + 1) / 2>(from, begin, end, d, out, head_dim);
}

/*! \brief out[r] += the sum of the values, weighted for query r. */
template <typename T>
inline void AddValues(const WeightedValues<T>& from, int32_t queries, float* out,
                      int32_t head_dim) {
  const int32_t many = queries - queries % kValueQueries;
  if (many > 0) AddValuesDims<kValueQueries, kValueVectors>(from, 0, many, 0, out, head_dim);
  if (many == queries) return;
  WithQueries(queries - many, [&](auto mr) {
    AddValuesDims<mr.value, mr.value == 1 ? 8 : 4>(from, many, queries, 0, out, head_dim);
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

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_MICRO_INL_H_
