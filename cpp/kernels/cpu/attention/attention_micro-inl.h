/*!
 * \file kernels/cpu/attention/attention_micro-inl.h
 * \brief The inner loops of attention over vectors of kLanes floats.
 *
 * Every sum has one fixed order, whatever the number of queries that share the work: an output
 * element adds its keys one after another.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_MICRO_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_MICRO_INL_H_

#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/cpu/simd/vec-inl.h"

namespace kvctl {
namespace {

/*! \brief GCC keeps arrays of vectors in registers only within one function. */
#define KVCTL_INLINE __attribute__((always_inline)) inline

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

  /*! \brief Prefetches the next bytes. */
  KVCTL_INLINE void FetchBytes(int32_t bytes) {
    for (owed_ += bytes; owed_ >= kLineBytes; owed_ -= kLineBytes) FetchLine();
  }

 private:
  KVCTL_INLINE void FetchLine() {
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

/*! \brief Calls f with `queries`, in [1, kMost], as an integral constant. */
template <int kMost, typename F>
inline void WithQueries(int32_t queries, F&& f) {
  if constexpr (kMost > 1) {
    if (queries < kMost) return WithQueries<kMost - 1>(queries, std::forward<F>(f));
  }
  f(std::integral_constant<int, kMost>());
}

/*! \brief out[r] = op over the lanes of query r. lanes: [queries, kLanes]. Reads and writes up to
 * the next multiple of four queries. */
template <typename Op>
inline void FoldLanes(Op op, const float* lanes, int32_t queries, float* out) {
  for (int32_t r = 0; r < queries; r += 4, lanes += 4 * kLanes) {
    StoreFolded(out + r, Load(lanes), Load(lanes + kLanes), Load(lanes + 2 * kLanes),
                Load(lanes + 3 * kLanes), op);
  }
}

/*! \brief Lists the visible ones of 64 keys, in ascending order, in `chosen`, and moves their
 * weights to the front of each query's. Returns their number. */
template <typename T>
inline int32_t MoveTogether(uint64_t visible, const T* const* keys, const T** chosen,
                            float* weights, int64_t stride, int32_t queries) {
  int32_t list[64];
  int32_t count = 0;
  for (uint64_t bits = visible; bits != 0; bits &= bits - 1) {
    list[count] = __builtin_ctzll(bits);
    chosen[count] = keys[list[count]];
    ++count;
  }
  if (visible >> (count - 1) == 1) return count;
  for (int32_t r = 0; r < queries; ++r, weights += stride) {
    for (int32_t i = 0; i < count; ++i) weights[i] = weights[list[i]];
  }
  return count;
}

/*! \brief The values of some keys, and their weights for each query. */
template <typename T>
struct WeightedValues {
  const T* const* keys;  // [count]
  int64_t offset;        // elements from a key to its value
  int32_t count;
  const float* weights;  // of query r: weights + r * stride, [count]
  int64_t stride;
  Fetcher* fetcher;
  int32_t key_bytes;  // how much to prefetch with each value
};

/*! \brief Adds weighted values to MR queries of ND vectors: out_r += sum_j w_rj v_j. */
template <int MR, int ND, typename T>
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
  Fetcher fetch = *from.fetcher;
  const int32_t fetch_bytes = from.key_bytes * ND * kLanes / head_dim;
  for (const T* const* end = keys + from.count; keys < end; ++keys, ++weights) {
    const T* value = *keys + offset;
    fetch.FetchBytes(fetch_bytes);
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
  *from.fetcher = fetch;
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
      AddValuesBlock<MR, ND>(from, query, d, out, head_dim);
    }
  }
  if constexpr (ND > 1) AddValuesDims<MR, (ND + 1) / 2>(from, begin, end, d, out, head_dim);
}

/*! \brief out[r] += the sum of the values, weighted for query r. Prefetches at an even pace. */
template <typename T>
inline void AddValues(WeightedValues<T> from, int32_t queries, float* out, int32_t head_dim) {
  const int32_t many = queries - queries % kValueQueries;
  from.key_bytes /= (queries + kValueQueries - 1) / kValueQueries;
  if (many > 0) AddValuesDims<kValueQueries, kValueVectors>(from, 0, many, 0, out, head_dim);
  if (many == queries) return;
  WithQueries<kValueQueries - 1>(queries - many, [&](auto mr) {
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
  return ZeroBelow(x, Set(-125.f), Scale2(y, x));
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_MICRO_INL_H_
