/*!
 * \file kernels/cpu/linear/linear_tile-inl.h
 * \brief The few-row matrix product of kernels/linear.h, for the instruction set of the including
 * file.
 *
 * A panel is two vectors of output columns wide. Its k inputs are processed in chunks that stay in
 * the first-level cache while blocks of rows pass over them, so weights are read from DRAM once.
 * Each pass also prefetches its share of the next chunk, so that loading and multiplying overlap.
 * Between chunks the sums are stored in float32, which changes no bit of them.
 */
#ifndef KVCTL_KERNELS_CPU_LINEAR_LINEAR_TILE_INL_H_
#define KVCTL_KERNELS_CPU_LINEAR_LINEAR_TILE_INL_H_

#include "kernels/cpu/linear/model_kernels.h"
#include "kernels/cpu/simd/simd-inl.h"

namespace kvctl {
namespace {

constexpr int kPanelWidth = 2 * Vec::kLanes;
// Rows whose sums fit the registers beside two vectors of weights and one of x.
constexpr int kTileRows = (Vec::kRegisters - 3) / 2 < 12 ? (Vec::kRegisters - 3) / 2 : 12;
constexpr int kChunk = 128;  // inputs of a panel that are processed together
constexpr int kGroup = 48;   // rows that pass over a chunk before the next one
constexpr int kCacheLine = 64;

inline void LoadWeights(const float* w, Vec* low, Vec* high) {
  *low = Load(w);
  *high = Load(w + Vec::kLanes);
}
inline void LoadWeights(const uint16_t* w, Vec* low, Vec* high) { LoadPair(w, low, high); }

/*! \brief sums (kRows, kPanelWidth) += x (kRows, count) * w (count, kPanelWidth), k ascending. */
template <int kRows, typename Weight>
void Tile(const float* x, int64_t x_stride, const Weight* w, int64_t count, const char* ahead,
          int64_t ahead_step, float* sums) {
  Vec low[kRows], high[kRows];
  for (int r = 0; r < kRows; ++r) {
    low[r] = Load(sums + r * kPanelWidth);
    high[r] = Load(sums + r * kPanelWidth + Vec::kLanes);
  }
  for (int64_t i = 0; i < count; ++i) {
    Vec w_low, w_high;
    LoadWeights(w + i * kPanelWidth, &w_low, &w_high);
    __builtin_prefetch(ahead + i * ahead_step);
    if (ahead_step > kCacheLine) __builtin_prefetch(ahead + i * ahead_step + kCacheLine);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      Vec value = Splat(x[r * x_stride + i]);
      low[r] = Fma(value, w_low, low[r]);
      high[r] = Fma(value, w_high, high[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    Store(sums + r * kPanelWidth, low[r]);
    Store(sums + r * kPanelWidth + Vec::kLanes, high[r]);
  }
}

template <typename Weight>
using TileFunction = void (*)(const float*, int64_t, const Weight*, int64_t, const char*, int64_t,
                              float*);

template <typename Weight>
TileFunction<Weight> TileOf(int rows) {
  static constexpr TileFunction<Weight> kTiles[] = {
      nullptr,          Tile<1, Weight>,  Tile<2, Weight>, Tile<3, Weight>,
      Tile<4, Weight>,  Tile<5, Weight>,  Tile<6, Weight>,
#if defined(__AVX512F__)
      Tile<7, Weight>,  Tile<8, Weight>,  Tile<9, Weight>, Tile<10, Weight>,
      Tile<11, Weight>, Tile<12, Weight>,
#endif
  };
  static_assert(sizeof(kTiles) / sizeof(kTiles[0]) == kTileRows + 1, "one tile per number of rows");
  return kTiles[rows];
}

/*! \brief Multiplies all inputs of one panel by a group of rows; sums are (rows, kPanelWidth),
 * initially zero. */
template <typename Weight>
void GroupOfRows(const PanelProduct& product, const float* x, int rows, const Weight* panel,
                 float* sums) {
  const int blocks = (rows + kTileRows - 1) / kTileRows;
  for (int64_t begin = 0; begin < product.k; begin += kChunk) {
    const int64_t count = product.k - begin < kChunk ? product.k - begin : kChunk;
    const Weight* w = panel + begin * kPanelWidth;
    const int64_t bytes = count * kPanelWidth * static_cast<int64_t>(sizeof(Weight));
    // The stream continues behind this chunk. The last prefetches of a weight lie past its end,
    // which is harmless.
    const char* ahead = reinterpret_cast<const char*>(w) + kChunk * kPanelWidth * sizeof(Weight);
    for (int block = 0, row = 0; block < blocks; ++block) {
      const int block_rows = (rows - row) / (blocks - block);
      TileOf<Weight>(block_rows)(x + row * product.k + begin, product.k, w, count,
                                 ahead + bytes / blocks * block, bytes / blocks / count,
                                 sums + row * kPanelWidth);
      row += block_rows;
    }
  }
}

template <typename Weight>
void LinearPanels(const PanelProduct& product, int64_t begin, int64_t end) {
  alignas(64) float sums[kGroup * kPanelWidth];
  for (int64_t p = begin; p < end; ++p) {
    const Weight* panel = static_cast<const Weight*>(product.panels) + p * product.k * kPanelWidth;
    const int64_t column = p * kPanelWidth;
    const int64_t columns = product.n - column < kPanelWidth ? product.n - column : kPanelWidth;
    for (int64_t row = 0; row < product.m; row += kGroup) {
      const int rows = static_cast<int>(product.m - row < kGroup ? product.m - row : kGroup);
      for (int i = 0; i < rows * kPanelWidth; ++i) sums[i] = 0.0f;
      GroupOfRows(product, product.x + row * product.k, rows, panel, sums);
      for (int r = 0; r < rows; ++r) {
        const int64_t at = (row + r) * product.n + column;
        for (int64_t c = 0; c < columns; ++c) {
          const float sum = sums[r * kPanelWidth + c];
          product.out[at + c] = product.addend == nullptr ? sum : sum + product.addend[at + c];
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_LINEAR_LINEAR_TILE_INL_H_
