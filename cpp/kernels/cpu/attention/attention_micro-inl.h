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

/*! \brief Stands behind the parameters of a lambda. */
#define KVCTL_INLINED __attribute__((always_inline))

template <typename F, int... I>
KVCTL_INLINE void UnrollEach(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>()), ...);
}

/*! \brief Calls f with each number below N, as an integral constant. GCC keeps an array of vectors
 * in registers where all its indices are constants from the start; of a loop that it unrolls later
 * it stores the array in every turn. */
template <int N, typename F>
KVCTL_INLINE void Unroll(F&& f) {
  UnrollEach(std::make_integer_sequence<int, N>(), f);
}

/*! \brief Calls f with each pair of numbers below M and N. */
template <int M, int N, typename F>
KVCTL_INLINE void UnrollPairs(F&& f) {
  Unroll<M>([&](auto m) KVCTL_INLINED { Unroll<N>([&](auto n) KVCTL_INLINED { f(m, n); }); });
}

/*! \brief MR rows, `stride` elements apart. It has the address of every third row, which is as much
 * as an instruction can express the others by: GCC keeps an address for each vector otherwise, and
 * moves them to and fro. */
template <int MR, typename T>
struct Rows {
  T* thirds[(MR + 2) / 3];
  int64_t stride;

  KVCTL_INLINE Rows(T* first, int64_t between) : stride(between) {
    Unroll<(MR + 2) / 3>([&](auto i) KVCTL_INLINED {
      thirds[i] = first + i * 3 * between;
      __asm__ volatile("" : "+r"(thirds[i]));
    });
  }
  KVCTL_INLINE T* operator[](int r) const { return thirds[r / 3] + r % 3 * stride; }
  KVCTL_INLINE void Skip(int64_t elements) {
    Unroll<(MR + 2) / 3>([&](auto i) KVCTL_INLINED { thirds[i] += elements; });
  }
};

constexpr int kLineBytes = 64;
constexpr int kFarQueries = 4;

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
  /*! \param far Whether to fetch into the second-level cache only. */
  Fetcher(const uintptr_t* runs, int64_t run_bytes, bool far)
      : runs_(runs), run_bytes_(run_bytes), line_(*runs), end_(*runs + run_bytes), far_(far) {}
  // Field by field, here and in Continue: GCC copies an object through the stack otherwise, and
  // reads it there in other sizes than it was written in, which waits until the sums before it are
  // stored.
  Fetcher(const Fetcher& from)
      : runs_(from.runs_),
        run_bytes_(from.run_bytes_),
        line_(from.line_),
        end_(from.end_),
        owed_(from.owed_),
        far_(from.far_) {}
  Fetcher& operator=(const Fetcher& from) = default;

  /*! \brief Continues where a copy of this one is now. */
  KVCTL_INLINE void Continue(const Fetcher& copy) {
    runs_ = copy.runs_;
    line_ = copy.line_;
    end_ = copy.end_;
    owed_ = copy.owed_;
  }

  /*! \brief Prefetches the next bytes. \tparam MR Queries of the loop that it happens in: only few
   * wait for memory so much that it matters where the bytes go. */
  template <int MR = 1>
  KVCTL_INLINE void FetchBytes(int32_t bytes) {
    owed_ += bytes;
    if (owed_ < kLineBytes) return;
    if (MR <= kFarQueries && __builtin_expect(far_, false)) {
      for (; owed_ >= kLineBytes; owed_ -= kLineBytes) FetchLine(PrefetchFar);
    } else {
      for (; owed_ >= kLineBytes; owed_ -= kLineBytes) FetchLine(Prefetch);
    }
  }

 private:
  template <typename F>
  KVCTL_INLINE void FetchLine(F&& prefetch) {
    prefetch(line_);
    line_ += kLineBytes;
    if (line_ < end_) return;
    line_ = *++runs_;
    end_ = line_ + run_bytes_;
  }

  const uintptr_t* runs_ = nullptr;  // addresses, one more than the number of runs
  int64_t run_bytes_ = 0;
  uintptr_t line_ = 0, end_ = 0;
  int32_t owed_ = 0;  // bytes, less than a line
  bool far_ = false;
};

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
                           int32_t head_dim, int32_t fetch_bytes) {
  out += int64_t(query) * head_dim + d;
  Vec sums[MR][ND];
  const Rows<MR, float> before(out, head_dim);
  UnrollPairs<MR, ND>([&](auto r, auto i)
                          KVCTL_INLINED { sums[r][i] = Load(before[r] + i * kLanes); });
  const T* const* keys = from.keys;
  const int64_t offset = from.offset + d;
  Rows<MR, const float> weights(from.weights + query * from.stride, from.stride);
  Fetcher fetch = *from.fetcher;
  for (const T* const* end = keys + from.count; keys < end; ++keys, weights.Skip(1)) {
    const T* value = *keys + offset;
    fetch.FetchBytes<MR>(fetch_bytes);
    // The smaller side is held in registers: it just fits beside the sums.
    if constexpr (MR < ND) {
      Vec w[MR];
      Unroll<MR>([&](auto r) KVCTL_INLINED { w[r] = Set(*weights[r]); });
      Unroll<ND>([&](auto i) KVCTL_INLINED {
        const Vec v = InRegister(Load(value + i * kLanes));
        Unroll<MR>([&](auto r) KVCTL_INLINED { sums[r][i] = FmaInPlace(w[r], v, sums[r][i]); });
      });
    } else {
      Vec v[ND];
      Unroll<ND>([&](auto i) KVCTL_INLINED { v[i] = InRegister(Load(value + i * kLanes)); });
      Unroll<MR>([&](auto r) KVCTL_INLINED {
        const Vec w = InRegister(Set(*weights[r]));
        Unroll<ND>([&](auto i) KVCTL_INLINED { sums[r][i] = FmaInPlace(w, v[i], sums[r][i]); });
      });
    }
  }
  from.fetcher->Continue(fetch);
  const Rows<MR, float> after(out, head_dim);
  UnrollPairs<MR, ND>([&](auto r, auto i)
                          KVCTL_INLINED { Store(after[r] + i * kLanes, sums[r][i]); });
}

/*! \brief AddValuesBlock for MR queries and the vectors [d, head_dim), ND at a time and then the
 * rest. */
template <int MR, int ND, typename T>
inline void AddValuesDims(const WeightedValues<T>& from, int32_t query, int32_t d, float* out,
                          int32_t head_dim) {
  const int32_t fetch_bytes = from.key_bytes * ND * kLanes / head_dim;
  for (; d + ND * kLanes <= head_dim; d += ND * kLanes) {
    AddValuesBlock<MR, ND>(from, query, d, out, head_dim, fetch_bytes);
  }
  if constexpr (ND > 1) AddValuesDims<MR, (ND + 1) / 2>(from, query, d, out, head_dim);
}

template <typename T>
using AddValuesFunction = void (*)(const WeightedValues<T>& from, int32_t query, int32_t d,
                                   float* out, int32_t head_dim);

/*! \brief AddValuesDims for 1, 2, ... queries. */
template <typename T, int... I>
inline AddValuesFunction<T> AddValuesOf(int32_t queries, std::integer_sequence<int, I...>) {
  // Fewer queries leave registers for more vectors.
  static constexpr AddValuesFunction<T> kFunctions[] = {AddValuesDims < I + 1,
                                                        I == 0                  ? 8
                                                        : I + 1 < kValueQueries ? 4
                                                                                : kValueVectors,
                                                        T > ...};
  return kFunctions[queries - 1];
}

/*! \brief out[r] += the sum of the values, weighted for query r. Prefetches at an even pace. */
template <typename T>
inline void AddValues(WeightedValues<T> from, int32_t queries, float* out, int32_t head_dim) {
  int32_t parts = (queries + kValueQueries - 1) / kValueQueries;
  from.key_bytes /= parts;
  for (int32_t query = 0; parts > 0; --parts) {
    const int32_t count = (queries - query + parts - 1) / parts;
    AddValuesOf<T>(count, std::make_integer_sequence<int, kValueQueries>())(from, query, 0, out,
                                                                            head_dim);
    query += count;
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
  return Scale2(y, x, Set(-125.f));
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_MICRO_INL_H_
