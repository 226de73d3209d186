#include <immintrin.h>

#include "kernels/cpu/simd/tile_config-inl.h"
#include "kernels/cpu/tiles/linear_tiles.h"

namespace kvctl {
namespace {

constexpr int kTileLine = 64;          // bytes of a line of a tile
constexpr int64_t kGroupBlocks = 8;    // blocks of rows that pass over a panel before the next one
constexpr int64_t kCachedTiles = 512;  // pairs of tiles of inputs, 1 MiB, in the second-level cache
constexpr int64_t kGroupPanels = 8;    // panels that a part of the inputs is kept there for
constexpr int64_t kOneBlockSteps = 8;  // between which one block's sums are stored
constexpr int kSums = kTileSide * kTilePanelWidth;  // of a block of rows

/*! \brief Tiles 0 to 3 are sums, 4 and 5 inputs, 6 and 7 weights. */
void Configure(int rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.Set(tile, tile < 6 ? rows : kTileSide, kTileLine);
  }
  config.Load();
}

/*! \brief Asks for weights. The last ones lie past a weight's end, which is harmless. */
inline void AskForHalfATile(const uint16_t* w) {
#pragma GCC unroll 8
  for (int line = 0; line < kTileSide / 2; ++line) {
    _mm_prefetch(reinterpret_cast<const char*>(w + line * kTileStep), _MM_HINT_T0);
  }
}

/*!
 * \brief Adds the products of one or two blocks of rows with a part of a panel to their sums.
 *
 * Weights are asked for one step ahead, no further: the processor streams them into the second
 * level by itself, and the first level waits for few lines at once, of which those of the inputs
 * would otherwise get none. For that reason they are asked for between the products, too.
 *
 * \param x_stride Numbers from a block of rows to the next.
 * \param from (16 rows for each block, kTilePanelWidth) sums, or nullptr where they are zero.
 * \param to_stride Numbers from a row of `to` to the next.
 */
template <int kBlocks, bool kAsk>
void Multiply(const uint16_t* x, int64_t x_stride, const uint16_t* w, int64_t steps,
              const float* from, float* to, int64_t to_stride) {
  if (from == nullptr) {
    _tile_zero(0);
    _tile_zero(1);
    if (kBlocks == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    constexpr int kLine = kTilePanelWidth * sizeof(float);
    _tile_loadd(0, from, kLine);
    _tile_loadd(1, from + kTileSide, kLine);
    if (kBlocks == 2) {
      _tile_loadd(2, from + kSums, kLine);
      _tile_loadd(3, from + kSums + kTileSide, kLine);
    }
  }
  for (int64_t s = 0; s < steps; ++s, x += 2 * kTileSize, w += 2 * kTileSize) {
    const uint16_t* ahead = w + 2 * kTileSize;
    if (kAsk) AskForHalfATile(ahead);
    _tile_loadd(6, w, kTileLine);
    _tile_loadd(7, w + kTileSize, kTileLine);
    _tile_loadd(4, x, kTileLine);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (kAsk) AskForHalfATile(ahead + kTileSize / 2);
    if (kBlocks == 2) {
      _tile_loadd(5, x + x_stride, kTileLine);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    if (kAsk) AskForHalfATile(ahead + kTileSize);
    _tile_loadd(4, x + kTileSize, kTileLine);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (kAsk) AskForHalfATile(ahead + kTileSize + kTileSize / 2);
    if (kBlocks == 2) {
      _tile_loadd(5, x + x_stride + kTileSize, kTileLine);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  const int64_t line = to_stride * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, to, line);
  _tile_stored(1, to + kTileSide, line);
  if (kBlocks == 2) {
    _tile_stored(2, to + kTileSide * to_stride, line);
    _tile_stored(3, to + kTileSide * to_stride + kTileSide, line);
  }
}

/*! \brief Thirty-two floats as bfloat16. */
__m512i Round(__m512 low, __m512 high) {
  const __m512bh rounded = _mm512_cvtne2ps_pbh(high, low);
  return reinterpret_cast<const __m512i&>(rounded);
}

/*! \brief What rounding left of x; zero where x has become an infinity. */
__m512 Rest(__m512 x, __m256i rounded) {
  const __m512 wide = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
  const __m512 infinity = _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000));
  const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(wide), infinity, _CMP_LT_OQ);
  return _mm512_maskz_sub_ps(finite, x, wide);
}

/*! \brief Writes the first `columns` sums of a row and adds the addend. */
void WriteRow(const float* sums, const float* addend, int64_t columns, float* out) {
  for (int64_t begin = 0; begin < columns; begin += kTileSide) {
    const int64_t count = columns - begin < kTileSide ? columns - begin : kTileSide;
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    __m512 sum = _mm512_loadu_ps(sums + begin);
    if (addend != nullptr) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, addend + begin));
    _mm512_mask_storeu_ps(out + begin, mask, sum);
  }
}

/*! \brief A group of blocks of rows, multiplied by a few panels at a time. */
class GroupOfBlocks {
 public:
  GroupOfBlocks(const TileProduct& product, int64_t first)
      : product_(product), steps_(TileInputs(product.k) / kTileStep), first_(first) {
    const int64_t blocks = (product.m + kTileSide - 1) / kTileSide - first;
    blocks_ = blocks < kGroupBlocks ? blocks : kGroupBlocks;
    // Measured: one block is faster when its sums are stored now and then, two when they are not.
    part_ = blocks_ == 1 ? kOneBlockSteps : kCachedTiles / blocks_;
    panels_ = steps_ * blocks_ <= kCachedTiles ? 1 : kGroupPanels;
  }

  /*! \brief Computes the output columns of panels [begin, end). */
  void Run(int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p += panels_) {
      const int64_t panels = end - p < panels_ ? end - p : panels_;
      for (int64_t s = 0; s < steps_; s += part_) {
        for (int64_t i = 0; i < panels; ++i) {
          for (int64_t block = 0; block < blocks_; block += 2) {
            Part(p + i, s, block, sums_ + (i * kGroupBlocks + block) * kSums);
          }
        }
      }
      for (int64_t i = 0; i < panels; ++i) Write(p + i, sums_ + i * kGroupBlocks * kSums);
    }
  }

 private:
  /*! \brief How many blocks from the first one on store the sums of a panel where they belong. */
  int64_t Direct(int64_t panel) const {
    if (product_.addend != nullptr || (panel + 1) * kTilePanelWidth > product_.n) return 0;
    const int64_t whole = product_.m / kTileSide - first_;
    return whole >= blocks_ ? blocks_ : whole / 2 * 2;
  }

  void Part(int64_t panel, int64_t step, int64_t block, float* sums) const {
    const int64_t x_stride = steps_ * 2 * kTileSize, left = steps_ - step;
    const uint16_t* x = product_.x + (first_ + block) * x_stride + step * 2 * kTileSize;
    const uint16_t* w = product_.tiles + (panel * steps_ + step) * 2 * kTileSize;
    const bool two = blocks_ - block >= 2, ask = block == 0;
    auto multiply = two ? (ask ? Multiply<2, true> : Multiply<2, false>)
                        : (ask ? Multiply<1, true> : Multiply<1, false>);
    const float* from = step == 0 ? nullptr : sums;
    if (left <= part_ && block < Direct(panel)) {
      float* out =
          product_.out + (first_ + block) * kTileSide * product_.n + panel * kTilePanelWidth;
      multiply(x, x_stride, w, left, from, out, product_.n);
    } else {
      multiply(x, x_stride, w, left < part_ ? left : part_, from, sums, kTilePanelWidth);
    }
  }

  void Write(int64_t panel, const float* sums) const {
    const int64_t column = panel * kTilePanelWidth;
    const int64_t columns =
        product_.n - column < kTilePanelWidth ? product_.n - column : kTilePanelWidth;
    const int64_t row = first_ * kTileSide;
    for (int64_t r = Direct(panel) * kTileSide; r < blocks_ * kTileSide; ++r) {
      if (row + r >= product_.m) return;
      const int64_t at = (row + r) * product_.n + column;
      WriteRow(sums + r * kTilePanelWidth,
               product_.addend == nullptr ? nullptr : product_.addend + at, columns,
               product_.out + at);
    }
  }

  const TileProduct& product_;
  int64_t steps_;   // of 32 inputs
  int64_t first_;   // block of rows
  int64_t blocks_;  // of rows
  int64_t part_;    // steps that are multiplied together
  int64_t panels_;  // that are multiplied together
  alignas(64) float sums_[kGroupPanels * kGroupBlocks * kSums];
};

}  // namespace

void SplitRowsToTiles(const float* x, int64_t m, int64_t k, int64_t begin, int64_t end,
                      uint16_t* out) {
  const int64_t steps = TileInputs(k) / kTileStep;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i / steps * kTileSide, input = i % steps * kTileStep;
    const int64_t rows = m - row < kTileSide ? m - row : kTileSide;
    const int64_t count = k - input < kTileStep ? k - input : kTileStep;
    const auto mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
    const float* source = x + row * k + input;
    uint16_t* line = out + i * 2 * kTileSize;
    for (int64_t r = 0; r < rows; ++r, source += k, line += kTileStep) {
      __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), source);
      __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), source + kTileSide);
      const __m512i rounded = Round(low, high);
      _mm512_storeu_si512(line, rounded);
      low = Rest(low, _mm512_castsi512_si256(rounded));
      high = Rest(high, _mm512_extracti64x4_epi64(rounded, 1));
      _mm512_storeu_si512(line + kTileSize, Round(low, high));
    }
    if (m < kTileSide) continue;  // tiles of so few rows hold no others
    for (int64_t r = rows; r < kTileSide; ++r, line += kTileStep) {
      _mm512_storeu_si512(line, _mm512_setzero_si512());
      _mm512_storeu_si512(line + kTileSize, _mm512_setzero_si512());
    }
  }
}

void MultiplyTiles(const TileProduct& product, int64_t begin, int64_t end) {
  const int64_t blocks = (product.m + kTileSide - 1) / kTileSide;
  Configure(static_cast<int>(product.m < kTileSide ? product.m : kTileSide));
  for (int64_t first = 0; first < blocks; first += kGroupBlocks) {
    GroupOfBlocks(product, first).Run(begin, end);
  }
  _tile_release();
}

}  // namespace kvctl
