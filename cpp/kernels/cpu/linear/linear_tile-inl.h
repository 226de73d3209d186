/*!
 * \file kernels/cpu/linear/linear_tile-inl.h
 * \brief The few-row matrix product of kernels/linear.h, for the instruction set of the including
 * file.
 *
 * A panel is two or three vectors of output columns wide. Its k inputs are processed in chunks that
 * stay in the first-level cache while blocks of rows pass over them, so weights are read from DRAM
 * once. Each pass also prefetches its share of the next chunk, so that loading and multiplying
 * overlap. Between chunks the sums are stored in float32, which changes no bit of them.
 */
#ifndef KVCTL_KERNELS_CPU_LINEAR_LINEAR_TILE_INL_H_
#define KVCTL_KERNELS_CPU_LINEAR_LINEAR_TILE_INL_H_

#include "kernels/cpu/linear/model_kernels.h"
#include "kernels/cpu/simd/simd-inl.h"

namespace kvctl {
namespace {

// Vectors of a panel. An addition waits four cycles for the one before it, and two begin in each:
// where registers hold the sums of few rows, three vectors keep eight of them under way.
template <typename Weight>
constexpr int kVectors = sizeof(Weight) == 4 && Vec::kLanes == 8 ? 3 : 2;
template <typename Weight>
constexpr int kPanelWidth = kVectors<Weight> * Vec::kLanes;
// The last panel of three vectors has one or two where its columns need no more.
template <typename Weight>
constexpr int kPanelStep = kVectors<Weight> == 3 ? Vec::kLanes : kPanelWidth<Weight>;
// Rows whose sums fit the registers beside the vectors of weights and one of x.
template <int kVecs>
constexpr int kTileRows =
    (Vec::kRegisters - kVecs - 1) / kVecs < 12 ? (Vec::kRegisters - kVecs - 1) / kVecs : 12;
constexpr int kChunk = 128;  // inputs of a panel that are processed together
constexpr int kGroup = 48;   // rows that pass over a chunk before the next one
constexpr int kCacheLine = 64;

template <int kVecs>
inline void LoadWeights(const float* w, Vec* vectors) {
#pragma GCC unroll 3
  for (int v = 0; v < kVecs; ++v) vectors[v] = Load(w + v * Vec::kLanes);
}
template <int kVecs>
inline void LoadWeights(const uint16_t* w, Vec* vectors) {
  static_assert(kVecs == 2, "a lane holds a weight of each");
  LoadPair(w, vectors, vectors + 1);
}

/*! \brief sums (kRows, kVecs vectors) += x (kRows, count) * w (count, kVecs vectors), k ascending.
 */
template <int kRows, int kVecs, typename Weight>
void Tile(const float* x, int64_t x_stride, const Weight* w, int64_t count, const char* ahead,
          int64_t ahead_step, float* sums) {
  constexpr int kWidth = kVecs * Vec::kLanes;
  Vec sum[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) sum[r][v] = Load(sums + r * kWidth + v * Vec::kLanes);
  }
  for (int64_t i = 0; i < count; ++i) {
    Vec weights[kVecs];
    LoadWeights<kVecs>(w + i * kWidth, weights);
    __builtin_prefetch(ahead + i * ahead_step);
    if (ahead_step > kCacheLine) __builtin_prefetch(ahead + i * ahead_step + kCacheLine);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Vec value = Splat(x[r * x_stride + i]);
#pragma GCC unroll 3
      for (int v = 0; v < kVecs; ++v) sum[r][v] = Fma(value, weights[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) Store(sums + r * kWidth + v * Vec::kLanes, sum[r][v]);
  }
}

template <typename Weight>
using TileFunction = void (*)(const float*, int64_t, const Weight*, int64_t, const char*, int64_t,
                              float*);

/*! \brief The tile of 1 to kRows rows. */
template <int kVecs, typename Weight, int kRows = kTileRows<kVecs>>
TileFunction<Weight> TileOf(int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return TileOf<kVecs, Weight, kRows - 1>(rows);
  }
  return Tile<kRows, kVecs, Weight>;
}

/*! \brief Multiplies all inputs of one panel by a group of rows; sums are (rows, kVecs vectors),
 * initially zero. */
template <int kVecs, typename Weight>
void GroupOfRows(const PanelProduct& product, const float* x, int rows, const Weight* panel,
                 float* sums) {
  constexpr int kWidth = kVecs * Vec::kLanes;
  const int blocks = (rows + kTileRows<kVecs> - 1) / kTileRows<kVecs>;
  for (int64_t begin = 0; begin < product.k; begin += kChunk) {
    const int64_t count = product.k - begin < kChunk ? product.k - begin : kChunk;
    const Weight* w = panel + begin * kWidth;
    const int64_t bytes = count * kWidth * static_cast<int64_t>(sizeof(Weight));
    // The stream continues behind this chunk. The last prefetches of a weight lie past its end,
    // which is harmless.
    const char* ahead = reinterpret_cast<const char*>(w) + kChunk * kWidth * sizeof(Weight);
    for (int block = 0, row = 0; block < blocks; ++block) {
      const int block_rows = (rows - row) / (blocks - block);
      TileOf<kVecs, Weight>(block_rows)(x + row * product.k + begin, product.k, w, count,
                                        ahead + bytes / blocks * block, bytes / blocks / count,
                                        sums + row * kWidth);
      row += block_rows;
    }
  }
}

/*! \brief Computes output columns [column, column + columns), those of one panel. */
template <int kVecs, typename Weight>
void LinearPanel(const PanelProduct& product, const Weight* panel, int64_t column,
                 int64_t columns) {
  constexpr int kWidth = kVecs * Vec::kLanes;
  alignas(64) float sums[kGroup * kWidth];
  for (int64_t row = 0; row < product.m; row += kGroup) {
    const int rows = static_cast<int>(product.m - row < kGroup ? product.m - row : kGroup);
    for (int i = 0; i < rows * kWidth; ++i) sums[i] = 0.0f;
    GroupOfRows<kVecs>(product, product.x + row * product.k, rows, panel, sums);
    for (int r = 0; r < rows; ++r) {
      const int64_t at = (row + r) * product.n + column;
      for (int64_t c = 0; c < columns; ++c) {
        const float sum = sums[r * kWidth + c];
        product.out[at + c] = product.addend == nullptr ? sum : sum + product.addend[at + c];
      }
    }
  }
}

template <typename Weight>
void LinearPanels(const PanelProduct& product, int64_t begin, int64_t end) {
  constexpr int kWidth = kPanelWidth<Weight>;
  for (int64_t p = begin; p < end; ++p) {
    const Weight* panel = static_cast<const Weight*>(product.panels) + p * product.k * kWidth;
    const int64_t column = p * kWidth;
    const int64_t columns = product.n - column < kWidth ? product.n - column : kWidth;
    auto compute = LinearPanel<kVectors<Weight>, Weight>;
    if constexpr (kVectors<Weight> == 3) {
      if (columns <= 2 * Vec::kLanes) compute = LinearPanel<2, Weight>;
      if (columns <= Vec::kLanes) compute = LinearPanel<1, Weight>;
    }
    compute(product, panel, column, columns);
  }
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_LINEAR_LINEAR_TILE_INL_H_
