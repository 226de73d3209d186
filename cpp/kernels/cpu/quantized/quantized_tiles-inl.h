/*!
 * \file kernels/cpu/quantized/quantized_tiles-inl.h
 * \brief What products of quantised rows on AMX tiles are made of: the tiles' configuration,
 * vectors of scales, buffers, and the writing of sums.
 */
#ifndef KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZED_TILES_INL_H_
#define KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZED_TILES_INL_H_

// Intrinsics of GCC 12 pass an undefined operand on purpose and warn of it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/quantized/linear_quantized.h"
#include "kernels/cpu/simd/tile_config-inl.h"

namespace kvctl {
namespace {

constexpr int kTileRows = kTileRowsTogether;
constexpr int kColumns = 16;    // of a tile of weights, half a panel
constexpr int kLineBytes = 64;  // of a line of a tile: four inputs of each column
constexpr int kQuadBytes = 4 * kQuantizedWidth;
// How far ahead of the sums weights are asked for, into the second-level cache and the first: less
// of those with 4 bits, of which more come in the same bytes.
constexpr int64_t FarBytes(WeightType type) { return HasBytes(type) ? 32768 : 16384; }
constexpr int64_t AheadBytes(WeightType type) { return HasBytes(type) ? 8192 : 4096; }

/*! \brief Tiles 0 to 3 are sums, 4 and 5 inputs, 6 and 7 weights. */
void Configure(int rows, int inputs) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    const bool is_input = tile == 4 || tile == 5;
    config.Set(tile, tile < 6 ? rows : inputs / 4, is_input ? inputs : kLineBytes);
  }
  config.Load();
}

__m512 LoadHalves(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
__m512 LoadUnsigned(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}
__m512 LoadSigned(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

#define KVCTL_INLINE __attribute__((always_inline)) inline

// What unpacks weights of 4 bits: matrices of bits, of which each makes one bit of a byte. Signed
// weights have their highest bit in all bits from it on, and these are flipped: eight less.
constexpr int64_t kLow = 0x0102040800000000, kHigh = 0x1020408000000000;
constexpr int64_t kLowSigned = 0x0102040808080808, kHighSigned = 0x1020408080808080;

// Two units are on their way in these buffers. With four, loads of one lay a multiple of 4096 bytes
// behind stores of another, and waited for them.
constexpr int kSlots = 2;

/*! \brief What tiles are stored to and loaded from. */
struct Buffers {
  alignas(64) int32_t dots[kSlots][2][kTileRows * kColumns];
  alignas(64) uint8_t weights[kSlots][2][16 * kLineBytes];
  alignas(64) float sums[kTileRows][kQuantizedWidth];
};

/*! \brief Writes rows of sums to the columns of a panel from `column` on. */
void WriteOut(const QuantizedProduct& product, const Buffers& buffers, int64_t row, int rows,
              int64_t column, int halves) {
  if (product.m - row < rows) rows = static_cast<int>(product.m - row);
  for (int half = 0; half < halves; ++half, column += kColumns) {
    const int64_t count = product.n - column < kColumns ? product.n - column : kColumns;
    if (count <= 0) return;
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    for (int r = 0; r < rows; ++r) {
      const int64_t at = (row + r) * product.n + column;
      __m512 sum = _mm512_load_ps(buffers.sums[r] + half * kColumns);
      if (product.addend != nullptr) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, product.addend + at));
      }
      _mm512_mask_storeu_ps(product.out + at, mask, sum);
    }
  }
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZED_TILES_INL_H_
