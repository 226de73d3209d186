/*!
 * \file kernels/cpu/attention/attention_panel-inl.h
 * \brief Scores: dot products of queries and keys.
 *
 * A *panel* has kPanelKeys keys in the form that scores are computed from. Here that is float32,
 * one key in each lane: element d of a key at d * kPanelKeys + key. A dot product is summed in its
 * own lane, so that it is the same whatever queries and keys share the work: products are added one
 * after another to sums of kSumDims of them, and these in turn, which rounds less than one long
 * sum.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PANEL_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PANEL_INL_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/attention/attention_micro-inl.h"
#include "kernels/cpu/attention/attention_unit.h"
#include "kernels/cpu/simd/vec-inl.h"

namespace kvctl {
namespace {

constexpr int32_t kPanelVectors = 2;
constexpr int32_t kPanelKeys = kPanelVectors * kLanes;
/*! \brief Writing a panel takes the time of about so many queries' scores. */
constexpr int32_t kPanelQueries = 5;

/*! \brief block[j] = element d + j of kLanes keys, for j in [0, kLanes). */
template <typename T>
KVCTL_INLINE void LoadTransposed(const T* const* keys, int64_t d, Vec* block) {
  // Quarter by quarter of the vectors; all of a key's loads come from one address.
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < kLanes; j += 4) block[j + i] = LoadQuads(keys + i, d + j);
  }
  for (int j = 0; j < kLanes; j += 4) TransposeQuads(block + j);
}

}  // namespace
}  // namespace kvctl

#if defined(__AMX_BF16__)
#include "kernels/cpu/attention/attention_panel_amx-inl.h"
#else

namespace kvctl {
namespace {

constexpr int32_t kSumDims = 32;
constexpr int32_t kHeadDims = kLanes;  // head_dim must be a multiple of it

/*! \brief Size of a panel. */
inline int64_t PanelFloats(int32_t head_dim) { return int64_t{kPanelKeys} * head_dim; }
/*! \brief Size of a packed query. */
inline int64_t QueryFloats(int32_t head_dim) { return head_dim; }

/*! \brief Packs one query. */
template <typename From>
inline void PackQuery(const From* from, int32_t head_dim, float scale, float* to) {
  for (int32_t d = 0; d < head_dim; d += kLanes) Store(to + d, Mul(Load(from + d), Set(scale)));
}

/*! \brief What the scores of a unit need while it lasts. */
struct ScoreUnit {
  /*! \brief For so many queries that share a key. */
  explicit ScoreUnit(int32_t) {}
};

/*! \brief Writes the panel of NV * kLanes keys, which lie `offset` elements behind `keys`. */
template <int NV, typename T>
inline void WritePanel(const T* const* keys, int64_t offset, int32_t head_dim, Fetcher* fetcher,
                       int32_t fetch_bytes, float* panel) {
  fetch_bytes = fetch_bytes * kLanes / (NV * head_dim);
  for (int n = 0; n < NV; ++n) {
    for (int32_t d = 0; d < head_dim; d += kLanes) {
      fetcher->FetchBytes(fetch_bytes);
      Vec block[kLanes];
      LoadTransposed(keys + n * kLanes, offset + d, block);
      float* to = panel + d * kPanelKeys + n * kLanes;
      for (int j = 0; j < kLanes; ++j) Store(to + j * kPanelKeys, block[j]);
    }
  }
}

/*! \brief WritePanel in bfloat16, whose pairs are transposed as if they were single numbers. */
template <int NV>
inline void WritePanel(const BFloat16* const* keys, int64_t offset, int32_t head_dim,
                       Fetcher* fetcher, int32_t fetch_bytes, float* panel) {
  if (head_dim % (2 * kLanes) != 0) {
    return WritePanel<NV, BFloat16>(keys, offset, head_dim, fetcher, fetch_bytes, panel);
  }
  fetch_bytes = fetch_bytes * 2 * kLanes / (NV * head_dim);
  const auto* pairs = reinterpret_cast<const float* const*>(keys);
  for (int n = 0; n < NV; ++n) {
    for (int32_t d = 0; d < head_dim; d += 2 * kLanes) {
      fetcher->FetchBytes(fetch_bytes);
      Vec block[kLanes];
      LoadTransposed(pairs + n * kLanes, (offset + d) / 2, block);
      float* to = panel + d * kPanelKeys + n * kLanes;
      for (int j = 0; j < kLanes; ++j, to += 2 * kPanelKeys) {
        Store(to, FirstOfPairs(block[j]));
        Store(to + kPanelKeys, SecondOfPairs(block[j]));
      }
    }
  }
}

/*!
 * \brief Adds the products of elements [d, d + kSums * kSumDims), or of fewer up to head_dim with
 * one sum, to the scores of MR queries with NV * kLanes keys.
 * \param rows Every third query from element d on, which is as much as an address can express.
 * \param panel From element d on. \param fetch_bytes With each kStep elements.
 */
template <int MR, int NV, int kSums>
KVCTL_INLINE void ScoreDims(const float* const* rows, int32_t d, int32_t head_dim,
                            const float* panel, Fetcher* fetcher, int32_t fetch_bytes,
                            float* scores, int64_t stride, float* maxima) {
  constexpr int kStep = 4;
  Vec sums[kSums][MR][NV];
  Unroll<kSums>([&](auto s) KVCTL_INLINED {
    UnrollPairs<MR, NV>([&](auto r, auto n) KVCTL_INLINED { sums[s][r][n] = Zero(); });
  });
  const int32_t dims = std::min(kSumDims, head_dim - d);
  for (int32_t i = 0; i < dims; i += kStep) {
    fetcher->FetchBytes<MR>(fetch_bytes);
    Unroll<kStep>([&](auto j) KVCTL_INLINED {
      Unroll<kSums>([&](auto s) KVCTL_INLINED {
        Vec keys[NV];
        const float* from = panel + j * kPanelKeys + s * kSumDims * kPanelKeys;
        Unroll<NV>([&](auto n) KVCTL_INLINED { keys[n] = InRegister(Load(from + n * kLanes)); });
        Unroll<MR>([&](auto r) KVCTL_INLINED {
          const float* q = rows[r / 3] + r % 3 * int64_t{head_dim} + s * kSumDims;
          const Vec query = InRegister(Set(q[i + j]));
          Unroll<NV>([&](auto n) KVCTL_INLINED {
            sums[s][r][n] = FmaInPlace(query, keys[n], sums[s][r][n]);
          });
        });
      });
    });
    panel += kStep * kPanelKeys;
  }
  const bool last = d + kSums * kSumDims >= head_dim;
  const Rows<MR, float> to_rows(scores, stride);
  Unroll<MR>([&](auto r) KVCTL_INLINED {
    Unroll<NV>([&](auto n) KVCTL_INLINED {
      float* to = to_rows[r] + n * kLanes;
      if (d > 0) sums[0][r][n] = Add(Load(to), sums[0][r][n]);
      Unroll<kSums - 1>(
          [&](auto s) KVCTL_INLINED { sums[0][r][n] = Add(sums[0][r][n], sums[s + 1][r][n]); });
      Store(to, sums[0][r][n]);
    });
  });
  if (!last || maxima == nullptr) return;
  Unroll<MR>([&](auto r) KVCTL_INLINED {
    Vec largest = Load(maxima + r * kLanes);
    Unroll<NV>([&](auto n) KVCTL_INLINED { largest = Max(sums[0][r][n], largest); });
    Store(maxima + r * kLanes, largest);
  });
}

/*!
 * \brief Scores of MR queries with the NV * kLanes keys of a panel: scores[r * stride + i] =
 * q_r . k_i.
 * \param step_bytes How much to prefetch with each four elements.
 * \param maxima nullptr, or [MR, kLanes] that the scores are taken into.
 */
template <int MR, int NV>
__attribute__((noinline)) void ScorePanel(const float* q, int32_t head_dim, const float* panel,
                                          Fetcher* fetcher, int32_t step_bytes, float* scores,
                                          int64_t stride, float* maxima) {
  // Few sums would wait for each other: two for each score are on the way then.
  constexpr int kSums = MR * NV <= kScoreQueries * kPanelVectors / 3 ? 2 : 1;
  Fetcher fetch = *fetcher;
  const float* rows[(MR + 2) / 3];
  Unroll<(MR + 2) / 3>([&](auto i) KVCTL_INLINED { rows[i] = q + i * 3 * int64_t{head_dim}; });
  int32_t d = 0;
  const auto score = [&](auto sums) KVCTL_INLINED {
    ScoreDims<MR, NV, sums.value>(rows, d, head_dim, panel, &fetch, step_bytes * sums.value, scores,
                                  stride, maxima);
    constexpr int32_t kDims = sums.value * kSumDims;
    Unroll<(MR + 2) / 3>([&](auto i) KVCTL_INLINED { rows[i] += kDims; });
    panel += kDims * kPanelKeys;
    d += kDims;
  };
  if constexpr (kSums == 2) {
    while (d + 2 * kSumDims <= head_dim) score(std::integral_constant<int, 2>());
  }
  while (d < head_dim) score(std::integral_constant<int, 1>());
  fetcher->Continue(fetch);
}

using ScoreFunction = void (*)(const float* q, int32_t head_dim, const float* panel,
                               Fetcher* fetcher, int32_t step_bytes, float* scores, int64_t stride,
                               float* maxima);

/*! \brief ScorePanel for 1, 2, ... queries. */
template <int NV, int... I>
inline ScoreFunction ScoreFunctionOf(int32_t queries, std::integer_sequence<int, I...>) {
  static constexpr ScoreFunction kFunctions[] = {ScorePanel<I + 1, NV>...};
  return kFunctions[queries - 1];
}

/*! \brief Whether ScoreQueries takes the scores into maxima. */
constexpr bool kScoresMaxima = true;
/*! \brief How much of the time scores take, the rest being that of values, where many share them.
 */
constexpr int32_t kScoresPercent = 50;

/*! \brief ScorePanel for any number of queries. Prefetches at an even pace, since memory takes a
 * limited number of requests at once. */
inline void ScoreQueries(const float* q, int32_t queries, int32_t head_dim, const float* panel,
                         bool one_vector, Fetcher* fetcher, int32_t fetch_bytes, float* scores,
                         int64_t stride, float* maxima) {
  if (one_vector && queries < kPanelQueries) {
    ScoreFunctionOf<1>(queries, std::make_integer_sequence<int, kPanelQueries - 1>())(
        q, head_dim, panel, fetcher, fetch_bytes * 4 / head_dim, scores, stride, maxima);
    return;
  }
  const int32_t parts = (queries + kScoreQueries - 1) / kScoreQueries;
  const int32_t step_bytes = fetch_bytes * 4 / (head_dim * parts);
  while (queries > 0) {
    // The last two are about even.
    int32_t count = queries;
    if (count > kScoreQueries) {
      count = count >= 2 * kScoreQueries ? kScoreQueries : (count + 1) / 2;
    }
    ScoreFunctionOf<kPanelVectors>(count, std::make_integer_sequence<int, kScoreQueries>())(
        q, head_dim, panel, fetcher, step_bytes, scores, stride, maxima);
    q += int64_t{count} * head_dim;
    scores += count * stride;
    if (maxima != nullptr) maxima += count * kLanes;
    queries -= count;
  }
}

}  // namespace
}  // namespace kvctl

#endif  // __AMX_BF16__

namespace kvctl {
namespace {

/*! \brief WritePanel of the keys whose bit is set, of kPanelKeys keys. The lanes of the others
 * may hold anything. */
template <typename T>
inline void WriteKeys(const T* const* keys, uint64_t bits, int64_t offset, int32_t head_dim,
                      Fetcher* fetcher, int32_t fetch_bytes, float* panel) {
  const T* chosen[kPanelKeys];
  if (bits != LowestBits(kPanelKeys)) {
    for (int i = 0; i < kPanelKeys; ++i) {
      // A hidden key may have no page: take one that has in its place.
      chosen[i] = keys[bits >> i & 1 ? i : __builtin_ctzll(bits)];
    }
    keys = chosen;
  }
  if (bits >> kLanes == 0) {
    WritePanel<1>(keys, offset, head_dim, fetcher, fetch_bytes, panel);
  } else {
    WritePanel<kPanelVectors>(keys, offset, head_dim, fetcher, fetch_bytes, panel);
  }
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PANEL_INL_H_
