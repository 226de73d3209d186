/*!
 * \file kernels/cpu/attention/attention_panel_amx-inl.h
 * \brief Scores of bfloat16 keys on the processor's tiles. Included by attention_panel-inl.h,
 * which says what each function does.
 *
 * Queries are split into three bfloat16 numbers, whose sum is exact. A panel has the pairs of
 * elements as they are in memory: pair (d, d + 1) of a key at d / 2 * kPanelKeys + key.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PANEL_AMX_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PANEL_AMX_INL_H_

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/attention/attention_micro-inl.h"
#include "kernels/cpu/simd/tile_config-inl.h"
#include "kernels/cpu/simd/vec-inl.h"

namespace kvctl {
namespace {

constexpr int32_t kTerms = 3;      // bfloat16 numbers that make up a float
constexpr int32_t kTileRows = 16;  // of a tile: queries of sums, pairs of keys
constexpr int32_t kTileDims = 32;  // elements in a line of a tile
constexpr int64_t kTileLine = 64;  // bytes
constexpr int32_t kHeadDims = kTileDims;

inline int64_t PanelFloats(int32_t head_dim) { return int64_t{kPanelKeys} * head_dim / 2; }
inline int64_t QueryFloats(int32_t head_dim) { return int64_t{kTerms} * head_dim / 2; }

/*! \brief Stores the upper halves of 16 floats, and returns what they leave out. */
inline Vec StoreTerm(Vec x, uint16_t* to) {
  const __m512i bits = _mm512_castps_si512(x);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
  return Sub(x, SecondOfPairs(x));
}

template <typename From>
inline void PackQuery(const From* from, int32_t head_dim, float scale, float* to) {
  auto* terms = reinterpret_cast<uint16_t*>(to);
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    Vec x = Mul(Load(from + d), Set(scale));
    for (int32_t term = 0; term < kTerms; ++term) {
      x = StoreTerm(x, terms + term * head_dim + d);
    }
  }
}

/*! \brief Tiles 0 to 3 are sums, 4 and 5 queries, 6 and 7 keys. */
class ScoreUnit {
 public:
  explicit ScoreUnit(int32_t queries) {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
      config.Set(tile, tile < 6 ? std::min(queries, kTileRows) : kTileRows, kTileLine);
    }
    config.Load();
  }
  ~ScoreUnit() { _tile_release(); }
};

/*! \brief Only pages of bfloat16 come here: those of float32 are values of packed chunks. */
template <int NV, typename T>
inline void WritePanel(const T* const* keys, int64_t offset, int32_t head_dim, Fetcher* fetcher,
                       int32_t fetch_bytes, float* panel) {
  fetch_bytes = fetch_bytes * 2 * kLanes / (NV * head_dim);
  const auto* pairs = reinterpret_cast<const float* const*>(keys);
  for (int n = 0; n < NV; ++n) {
    for (int32_t d = 0; d < head_dim; d += 2 * kLanes) {
      fetcher->FetchBytes(fetch_bytes);
      Vec block[kLanes];
      LoadTransposed(pairs + n * kLanes, (offset + d) / 2, block);
      float* to = panel + d / 2 * kPanelKeys + n * kLanes;
      for (int j = 0; j < kLanes; ++j) Store(to + j * kPanelKeys, block[j]);
    }
  }
}

/*! \brief Stores sums of up to 16 queries with 16 keys: store(to, bytes from line to line). */
template <typename Store16>
KVCTL_INLINE void StoreScores(int32_t queries, float* scores, int64_t stride, Store16&& store) {
  if (queries >= kTileRows) return store(scores, stride * int64_t{sizeof(float)});
  alignas(64) float lines[kTileRows * kLanes];
  store(lines, kTileLine);
  for (int32_t r = 0; r < queries; ++r) Store(scores + r * stride, Load(lines + r * kLanes));
}

/*! \brief Scores of one or two tiles of queries with a panel; the last one may have fewer. */
template <int kTiles>
inline void ScorePanel(const uint16_t* q, int32_t queries, int32_t head_dim, const float* panel,
                       float* scores, int64_t stride) {
  const int64_t row = int64_t{kTerms} * head_dim;
  const int64_t row_bytes = row * int64_t{sizeof(uint16_t)};
  constexpr int64_t kPanelBytes = kPanelKeys * sizeof(float);
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTiles == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int32_t d = 0; d < head_dim; d += kTileDims, panel += kTileRows * kPanelKeys) {
    _tile_loadd(6, panel, kPanelBytes);
    _tile_loadd(7, panel + kLanes, kPanelBytes);
    for (int32_t term = 0; term < kTerms; ++term) {
      const uint16_t* from = q + term * head_dim + d;
      _tile_loadd(4, from, row_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kTiles == 2) {
        _tile_loadd(5, from + kTileRows * row, row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  // The instruction wants the number of its tile literally.
  const auto store0 = [](float* to, int64_t bytes) { _tile_stored(0, to, bytes); };
  const auto store1 = [](float* to, int64_t bytes) { _tile_stored(1, to, bytes); };
  StoreScores(queries, scores, stride, store0);
  StoreScores(queries, scores + kLanes, stride, store1);
  if constexpr (kTiles == 2) {
    const auto store2 = [](float* to, int64_t bytes) { _tile_stored(2, to, bytes); };
    const auto store3 = [](float* to, int64_t bytes) { _tile_stored(3, to, bytes); };
    scores += kTileRows * stride;
    StoreScores(queries - kTileRows, scores, stride, store2);
    StoreScores(queries - kTileRows, scores + kLanes, stride, store3);
  }
}

constexpr bool kScoresMaxima = false;
constexpr int32_t kScoresPercent = 20;

inline void ScoreQueries(const float* q, int32_t queries, int32_t head_dim, const float* panel,
                         bool, Fetcher* fetcher, int32_t fetch_bytes, float* scores, int64_t stride,
                         float*) {
  const int32_t parts = (queries + 2 * kTileRows - 1) / (2 * kTileRows);
  Written(panel);
  for (int32_t query = 0; query < queries; query += 2 * kTileRows) {
    fetcher->FetchBytes(fetch_bytes / parts);
    const int32_t count = std::min(queries - query, 2 * kTileRows);
    const auto* from = reinterpret_cast<const uint16_t*>(q + query * QueryFloats(head_dim));
    float* to = scores + query * stride;
    if (count > kTileRows) {
      ScorePanel<2>(from, count, head_dim, panel, to, stride);
    } else {
      ScorePanel<1>(from, count, head_dim, panel, to, stride);
    }
  }
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PANEL_AMX_INL_H_
