#include <immintrin.h>

#include "kernels/cpu/simd/tile_config-inl.h"
#include "kernels/cpu/tiles/linear_tiles.h"

namespace kvctl {
namespace {

constexpr int kTileLine = 64;        // bytes of a line of a tile
constexpr int64_t kChunkSteps = 8;   // tiles of inputs that stay in the first-level cache
constexpr int64_t kGroupBlocks = 8;  // blocks of rows that pass over a chunk before the next one
constexpr int64_t kAheadSteps = 6;   // how far ahead of the products weights are asked for
constexpr int kSums = kTileSide * kTilePanelWidth;  // of a block of rows

/*! \brief Tiles 0 to 3 are sums, 4 and 5 inputs, 6 and 7 weights. */
void Configure(int rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.Set(tile, tile < 6 ? rows : kTileSide, kTileLine);
  }
  config.Load();
}

/*!
 * \brief Adds the products of one or two blocks of rows with a chunk of a panel to their sums.
 * \param x_stride Numbers from a block of rows to the next.
 * \param fresh The sums are zero, whatever the memory holds.
 * \param ask Whether to ask for the weights that follow.
 */
template <int kBlocks>
void Chunk(const uint16_t* x, int64_t x_stride, const uint16_t* w, int64_t steps, bool fresh,
           bool ask, float* sums) {
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    if (kBlocks == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, sums, kTileLine);
    _tile_loadd(1, sums + kSums / 2, kTileLine);
    if (kBlocks == 2) {
      _tile_loadd(2, sums + kSums, kTileLine);
      _tile_loadd(3, sums + kSums + kSums / 2, kTileLine);
    }
  }
  for (int64_t s = 0; s < steps; ++s, x += 2 * kTileSize, w += 2 * kTileSize) {
    if (ask) {
      const char* ahead = reinterpret_cast<const char*>(w + kAheadSteps * 2 * kTileSize);
      for (int line = 0; line < 2 * kTileSide; ++line) {
        _mm_prefetch(ahead + line * kTileLine, _MM_HINT_T0);
      }
    }
    _tile_loadd(6, w, kTileLine);
    _tile_loadd(7, w + kTileSize, kTileLine);
    _tile_loadd(4, x, kTileLine);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (kBlocks == 2) {
      _tile_loadd(5, x + x_stride, kTileLine);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_loadd(4, x + kTileSize, kTileLine);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (kBlocks == 2) {
      _tile_loadd(5, x + x_stride + kTileSize, kTileLine);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, kTileLine);
  _tile_stored(1, sums + kSums / 2, kTileLine);
  if (kBlocks == 2) {
    _tile_stored(2, sums + kSums, kTileLine);
    _tile_stored(3, sums + kSums + kSums / 2, kTileLine);
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
  for (int64_t half = 0; half < 2; ++half) {
    const int64_t begin = half * kTileSide;
    const int64_t count = columns - begin < kTileSide ? columns - begin : kTileSide;
    if (count <= 0) return;
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    __m512 sum = _mm512_loadu_ps(sums + half * (kSums / 2));
    if (addend != nullptr) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, addend + begin));
    _mm512_mask_storeu_ps(out + begin, mask, sum);
  }
}

}  // namespace

void SplitRowsToTiles(const float* x, int64_t m, int64_t k, int64_t row, uint16_t* block) {
  for (int64_t r = 0; r < kTileSide; ++r) {
    const float* source = x + (row + r) * k;
    for (int64_t begin = 0; begin < k; begin += kTileStep) {
      __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
      if (row + r < m) {
        const int64_t count = k - begin < kTileStep ? k - begin : kTileStep;
        const auto mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
        low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), source + begin);
        high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), source + begin + 16);
      }
      uint16_t* line = block + begin / kTileStep * 2 * kTileSize + r * kTileStep;
      const __m512i rounded = Round(low, high);
      _mm512_storeu_si512(line, rounded);
      low = Rest(low, _mm512_castsi512_si256(rounded));
      high = Rest(high, _mm512_extracti64x4_epi64(rounded, 1));
      _mm512_storeu_si512(line + kTileSize, Round(low, high));
    }
  }
}

void MultiplyTiles(const TileProduct& product, int64_t begin, int64_t end) {
  alignas(64) float sums[kGroupBlocks * kSums];
  const int64_t blocks = (product.m + kTileSide - 1) / kTileSide;
  const int64_t steps = TileInputs(product.k) / kTileStep;
  const int64_t x_stride = steps * 2 * kTileSize;
  Configure(static_cast<int>(product.m < kTileSide ? product.m : kTileSide));
  for (int64_t p = begin; p < end; ++p) {
    const uint16_t* panel = product.tiles + p * steps * 2 * kTileSize;
    const int64_t column = p * kTilePanelWidth;
    const int64_t columns =
        product.n - column < kTilePanelWidth ? product.n - column : kTilePanelWidth;
    for (int64_t group = 0; group < blocks; group += kGroupBlocks) {
      const int64_t last = blocks - group < kGroupBlocks ? blocks - group : kGroupBlocks;
      for (int64_t s = 0; s < steps; s += kChunkSteps) {
        const int64_t count = steps - s < kChunkSteps ? steps - s : kChunkSteps;
        const uint16_t* w = panel + s * 2 * kTileSize;
        for (int64_t block = 0; block < last; block += 2) {
          const uint16_t* x = product.x + (group + block) * x_stride + s * 2 * kTileSize;
          auto chunk = last - block >= 2 ? Chunk<2> : Chunk<1>;
          chunk(x, x_stride, w, count, s == 0, block == 0, sums + block * kSums);
        }
      }
      const int64_t row = group * kTileSide;
      for (int64_t r = 0; r < last * kTileSide && row + r < product.m; ++r) {
        const int64_t at = (row + r) * product.n + column;
        WriteRow(sums + r / kTileSide * kSums + r % kTileSide * kTileSide,
                 product.addend == nullptr ? nullptr : product.addend + at, columns,
                 product.out + at);
      }
    }
  }
  _tile_release();
}

}  // namespace kvctl
