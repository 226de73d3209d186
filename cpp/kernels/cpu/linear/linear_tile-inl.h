/*!
 * \file kernels/cpu/linear/linear_tile-inl.h
 * \brief The few-row matrix product of kernels/linear.h, for the instruction set of the including
 * file.
 *
 * A panel is two vectors of output columns wide. Its k inputs are processed in chunks that stay in
 * the first-level cache while blocks of rows pass over them, so weights are read from DRAM once.
 * Between chunks the sums are stored in float32, which changes no bit of them.
 *
 * Loading and multiplying overlap by prefetches at two distances. The first block of rows asks the
 * first-level cache for what it needs shortly, since that cache waits for few lines at once: far
 * ahead, they would be gone again. With more than two rows the processor's own prefetches come too
 * late, so every pass asks the second-level cache for its share of what is needed much later.
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
constexpr int kNear = 2048;     // bytes ahead in the first-level cache
constexpr int kFar = 24 << 10;  // bytes ahead in the second-level one
constexpr int kFewRows = 2;     // that keep up with the processor's own prefetches
// Where vectors are narrow and several blocks of rows pass over weights, multiplying takes all
// ports: each line is prefetched once, into the first-level cache.
constexpr bool kNarrow = Vec::kRegisters < 32;
// So it is with any number of rows for weights that are unpacked first.
template <typename Weight>
constexpr bool kOnce = kNarrow && sizeof(Weight) < sizeof(float);

inline void LoadWeights(const float* w, Vec* low, Vec* high) {
  *low = Load(w);
  *high = Load(w + Vec::kLanes);
}
inline void LoadWeights(const uint16_t* w, Vec* low, Vec* high) { LoadPair(w, low, high); }

/*! \brief What a pass of rows over some inputs of a panel begins with, and prefetches. */
struct Pass {
  bool fresh;         // sums are zero: no inputs came before
  const char* near;   // what to prefetch into the first-level cache
  int64_t near_step;  // its bytes for each input; 0 prefetches nothing
  const char* far;    // into the second-level cache
  int64_t far_step;
};

/*! \brief sums (kRows, kPanelWidth) += x (kRows, count) * w (count, kPanelWidth), k ascending. */
template <int kRows, typename Weight>
void Tile(const float* x, int64_t x_stride, const Weight* w, int64_t count, const Pass& pass,
          float* sums) {
  const char *near = pass.near, *far = pass.far;
  const int64_t near_step = pass.near_step, far_step = pass.far_step;
  Vec low[kRows], high[kRows];
  for (int r = 0; r < kRows; ++r) {
    low[r] = pass.fresh ? Splat(0.0f) : Load(sums + r * kPanelWidth);
    high[r] = pass.fresh ? Splat(0.0f) : Load(sums + r * kPanelWidth + Vec::kLanes);
  }
  for (int64_t i = 0; i < count; ++i) {
    Vec w_low, w_high;
    LoadWeights(w + i * kPanelWidth, &w_low, &w_high);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      Vec value = Splat(x[r * x_stride + i]);
      low[r] = Fma(value, w_low, low[r]);
      high[r] = Fma(value, w_high, high[r]);
      // Spread over the rows: one behind another, prefetches keep the loads behind them waiting.
      // Not in functions of their own, which GCC takes to be without effect.
      if (r == 0 && (kOnce<Weight> || near_step > 0)) __builtin_prefetch(near + i * near_step);
      if (kOnce<Weight>) continue;
      if (r == kRows / 4 && far_step > 0) __builtin_prefetch(far + i * far_step, 0, 2);
      if (r == kRows / 2 && near_step > kCacheLine) {
        __builtin_prefetch(near + i * near_step + kCacheLine);
      }
      if (r == 3 * kRows / 4 && far_step > kCacheLine) {
        __builtin_prefetch(far + i * far_step + kCacheLine, 0, 2);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    Store(sums + r * kPanelWidth, low[r]);
    Store(sums + r * kPanelWidth + Vec::kLanes, high[r]);
  }
}

template <typename Weight>
using TileFunction = void (*)(const float*, int64_t, const Weight*, int64_t, const Pass&, float*);

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

/*! \brief sums (rows, kPanelWidth) = a group of rows times all inputs of one panel. */
template <typename Weight>
void GroupOfRows(const PanelProduct& product, const float* x, int rows, const Weight* panel,
                 float* sums) {
  const int blocks = (rows + kTileRows - 1) / kTileRows;
  for (int64_t begin = 0; begin < product.k; begin += kChunk) {
    const int64_t count = product.k - begin < kChunk ? product.k - begin : kChunk;
    const Weight* w = panel + begin * kPanelWidth;
    const char* here = reinterpret_cast<const char*>(w);
    constexpr int64_t kStep = kPanelWidth * sizeof(Weight);
    for (int block = 0, row = 0; block < blocks; ++block) {
      const int block_rows = (rows - row) / (blocks - block);
      // The last prefetches of a weight lie behind its end, which is harmless.
      const int64_t share = kStep / blocks;
      const int64_t behind = share * count * block;
      Pass pass{begin == 0, here + kNear, block == 0 ? kStep : 0, here + kFar + behind,
                rows > kFewRows ? share : 0};
      if (kOnce<Weight> || (kNarrow && blocks > 1)) {
        pass = {begin == 0, here + kChunk * kStep + behind, share, nullptr, 0};
      }
      TileOf<Weight>(block_rows)(x + row * product.k + begin, product.k, w, count, pass,
                                 sums + row * kPanelWidth);
      row += block_rows;
    }
  }
}

/*! \brief Stores the sums of a row where they belong, with the addend if there is one. */
inline void StoreRow(const PanelProduct& product, const float* sums, int64_t at, int64_t columns) {
  if (columns < kPanelWidth) {
    for (int64_t c = 0; c < columns; ++c) {
      product.out[at + c] = product.addend == nullptr ? sums[c] : sums[c] + product.addend[at + c];
    }
    return;
  }
  for (int64_t c = 0; c < kPanelWidth; c += Vec::kLanes) {
    Vec sum = Load(sums + c);
    if (product.addend != nullptr) sum = Add(sum, Load(product.addend + at + c));
    Store(product.out + at + c, sum);
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
      GroupOfRows(product, product.x + row * product.k, rows, panel, sums);
      for (int r = 0; r < rows; ++r) {
        StoreRow(product, sums + r * kPanelWidth, (row + r) * product.n + column, columns);
      }
    }
  }
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_LINEAR_LINEAR_TILE_INL_H_
