/*!
 * \file kernels/cpu/attention/attention_panel-inl.h
 * \brief Scores: dot products of queries and keys.
 *
 * A *panel* has some vectors of keys, one key in each lane: element (d, key) of its keys lies at
 * d * kPanelKeys + key. A dot product is summed in its own lane, so that it is the same whatever
 * queries and keys share the work: products are added one after another to sums of kSumDims of
 * them, and these in turn, which rounds less than one long sum.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PANEL_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PANEL_INL_H_

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/attention/attention_micro-inl.h"
#include "kernels/cpu/simd/vec-inl.h"

namespace kvctl {
namespace {

constexpr int32_t kPanelVectors = 2;
constexpr int32_t kPanelKeys = kPanelVectors * kLanes;
constexpr int32_t kSumDims = 32;
/*! \brief With so few queries most of the time goes into writing the panel. */
constexpr int32_t kPanelQueries = 4;

/*! \brief block[j] = element d + j of kLanes keys, for j in [0, kLanes). */
template <typename T>
KVCTL_INLINE void LoadTransposed(const T* const* keys, int32_t d, Vec* block) {
  // Quarter by quarter of the vectors; all of a key's loads come from one address.
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < kLanes; j += 4) block[j + i] = LoadQuads(keys + i, d + j);
  }
  for (int j = 0; j < kLanes; j += 4) TransposeQuads(block + j);
}

/*! \brief Writes the panel of NV * kLanes keys. Prefetches as many bytes as they have, unless
 * fetcher is nullptr. */
template <int NV, typename T>
inline void WritePanel(const T* const* keys, int32_t head_dim, Fetcher* fetcher, float* panel) {
  for (int n = 0; n < NV; ++n) {
    for (int32_t d = 0; d < head_dim; d += kLanes) {
      if (fetcher != nullptr) fetcher->Fetch<kLanes * kLanes * sizeof(T)>();
      Vec block[kLanes];
      LoadTransposed(keys + n * kLanes, d, block);
      float* to = panel + d * kPanelKeys + n * kLanes;
      for (int j = 0; j < kLanes; ++j) Store(to + j * kPanelKeys, block[j]);
    }
  }
}

/*! \brief WritePanel in bfloat16, whose pairs are transposed as if they were single numbers. */
template <int NV>
inline void WritePanel(const BFloat16* const* keys, int32_t head_dim, Fetcher* fetcher,
                       float* panel) {
  if (head_dim % (2 * kLanes) != 0) return WritePanel<NV, BFloat16>(keys, head_dim, fetcher, panel);
  const auto* pairs = reinterpret_cast<const float* const*>(keys);
  for (int n = 0; n < NV; ++n) {
    for (int32_t d = 0; d < head_dim; d += 2 * kLanes) {
      if (fetcher != nullptr) fetcher->Fetch<kLanes * kLanes * sizeof(float)>();
      Vec block[kLanes];
      LoadTransposed(pairs + n * kLanes, d / 2, block);
      float* to = panel + d * kPanelKeys + n * kLanes;
      for (int j = 0; j < kLanes; ++j, to += 2 * kPanelKeys) {
        Store(to, FirstOfPairs(block[j]));
        Store(to + kPanelKeys, SecondOfPairs(block[j]));
      }
    }
  }
}

/*! \brief WritePanel of the keys whose bit is set, of kPanelKeys keys. The lanes of the others
 * may hold anything. */
template <typename T>
inline void WriteKeys(const T* const* keys, uint64_t bits, int64_t offset, int32_t head_dim,
                      Fetcher* fetcher, float* panel) {
  const T* chosen[kPanelKeys];
  for (int i = 0; i < kPanelKeys; ++i) {
    // A hidden key may have no page: take one that has in its place.
    chosen[i] = keys[bits >> i & 1 ? i : __builtin_ctzll(bits)] + offset;
  }
  if (bits >> kLanes == 0) {
    WritePanel<1>(chosen, head_dim, fetcher, panel);
  } else {
    WritePanel<kPanelVectors>(chosen, head_dim, fetcher, panel);
  }
}

/*!
 * \brief Scores of MR queries with the NV * kLanes keys of a panel: scores[r * stride + i] =
 * q_r . k_i.
 * \param fetch_bytes How much to prefetch on the way.
 */
template <int MR, int NV>
inline void ScorePanel(const float* q, int32_t head_dim, const float* panel, Fetcher* fetcher,
                       int32_t fetch_bytes, float* scores, int64_t stride) {
  constexpr int kStep = 4;
  Fetcher fetch = *fetcher;
  const int32_t step_bytes = fetch_bytes / (head_dim / kStep);
  // Three queries from each pointer, which is as much as an address can express.
  const float* rows[(MR + 2) / 3];
  for (int r = 0; r < MR; r += 3) rows[r / 3] = q + int64_t{r} * head_dim;
  for (int32_t begin = 0; begin < head_dim; begin += kSumDims) {
    Vec sums[MR][NV];
    for (int r = 0; r < MR; ++r) {
      for (int n = 0; n < NV; ++n) sums[r][n] = Zero();
    }
    const int32_t end = std::min(begin + kSumDims, head_dim);
    for (int32_t d = begin; d < end; d += kStep) {
      fetch.FetchBytes(step_bytes);
      for (int j = 0; j < kStep; ++j, panel += kPanelKeys) {
        Vec keys[NV];
        for (int n = 0; n < NV; ++n) keys[n] = InRegister(Load(panel + n * kLanes));
        for (int r = 0; r < MR; ++r) {
          const Vec query = InRegister(Set(rows[r / 3][r % 3 * int64_t{head_dim} + j]));
          for (int n = 0; n < NV; ++n) sums[r][n] = Fma(query, keys[n], sums[r][n]);
        }
      }
      for (int r = 0; r < MR; r += 3) rows[r / 3] += kStep;
    }
    for (int r = 0; r < MR; ++r) {
      for (int n = 0; n < NV; ++n) {
        float* to = scores + r * stride + n * kLanes;
        Store(to, begin == 0 ? sums[r][n] : Add(Load(to), sums[r][n]));
      }
    }
  }
  *fetcher = fetch;
}

/*! \brief ScorePanel for any number of queries. Prefetches at an even pace, since memory takes a
 * limited number of requests at once. */
inline void ScoreQueries(const float* q, int32_t queries, int32_t head_dim, const float* panel,
                         bool one_vector, Fetcher* fetcher, int32_t fetch_bytes, float* scores,
                         int64_t stride) {
  if (one_vector && queries <= kPanelQueries) {
    WithQueries<kPanelQueries>(queries, [&](auto mr) {
      ScorePanel<mr.value, 1>(q, head_dim, panel, fetcher, fetch_bytes, scores, stride);
    });
    return;
  }
  int32_t parts = (queries + kScoreQueries - 1) / kScoreQueries;
  fetch_bytes /= parts;
  for (int32_t query = 0; parts > 0; --parts) {
    const int32_t count = (queries - query + parts - 1) / parts;
    WithQueries<kScoreQueries>(count, [&](auto mr) {
      ScorePanel<mr.value, kPanelVectors>(q + int64_t{query} * head_dim, head_dim, panel, fetcher,
                                          fetch_bytes, scores + query * stride, stride);
    });
    query += count;
  }
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PANEL_INL_H_
