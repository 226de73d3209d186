// Products of quantised rows on AMX tiles. A block's products are integers, and the floats that
// follow are those of linear_quantized-inl.h in its order: the results are the same bits.

// Intrinsics of GCC 12 pass an undefined operand on purpose and warn of it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/quantized/linear_quantized.h"
#include "kernels/cpu/simd/tile_config-inl.h"

namespace kvctl {
namespace {

constexpr int kTileRows = kTileRowsTogether;
constexpr int kColumns = 16;    // of a tile of weights, half a panel
constexpr int kLineBytes = 64;  // of a line of a tile: four inputs of each column
constexpr int kQuadBytes = 4 * kQuantizedWidth;
constexpr int64_t kAheadBytes = 8192;

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

constexpr int kChunk = 8;  // blocks, or parts of them, that are multiplied one after another

/*! \brief What tiles are stored to and loaded from, of a chunk. */
struct Buffers {
  alignas(64) int32_t dots[kChunk][2][kTileRows * kColumns];
  alignas(64) uint8_t weights[kChunk][2][8 * kLineBytes];
};

/*!
 * \brief kRows rows times kHalves halves of a panel, from column `first` of it on.
 *
 * Weights of a chunk are unpacked, then multiplied, then its sums are added: tiles that are loaded
 * right behind the stores of what they hold, or stored right behind their products, wait for those.
 * The sums stay in registers: no instruction that the compiler cannot look into has their address.
 */
template <int kRows, int kHalves, WeightType kType>
class Block {
 public:
  static constexpr int kParts = kType == WeightType::kInt8Parts ? 2 : 1;
  static constexpr int kInputs = kBlockInputs / kParts;  // of a tile
  static constexpr int kIntegers = (HasBytes(kType) ? 8 : 4) * kQuadBytes;

  KVCTL_INLINE Block(const QuantizedProduct& product, int64_t row, const uint8_t* panel, int first,
                     bool ask, Buffers* buffers)
      : x_(product.x),
        blocks_(product.blocks),
        row_(row),
        panel_(panel),
        first_(first),
        ask_(ask),
        buffers_(buffers) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows * kHalves; ++i) sums_[i] = _mm512_setzero_ps();
  }

  KVCTL_INLINE void Run() {
    const int64_t parts = blocks_ * kParts;
    for (int64_t at = 0; at < parts; at += kChunk) {
      const int count = static_cast<int>(parts - at < kChunk ? parts - at : kChunk);
      for (int i = 0; i < count; ++i) {
        for (int half = 0; half < kHalves; ++half) Unpack(at + i, i, half);
      }
      Written(buffers_->weights);
      const int units = count * kHalves;
      for (int unit = 0; unit < units; unit += 4) {
        Multiply<0>(at, unit);
        if (unit + 1 < units) Multiply<1>(at, unit + 1);
        if (unit + 2 < units) Multiply<2>(at, unit + 2);
        if (unit + 3 < units) Multiply<3>(at, unit + 3);
      }
      for (int i = 0; i < count; ++i) Add(at + i, i);
    }
  }

  KVCTL_INLINE __m512 sum(int r, int half) const { return sums_[r * kHalves + half]; }

 private:
  /*! \brief Writes the signed weights of part `at`, which is part i of the chunk. */
  KVCTL_INLINE void Unpack(int64_t at, int i, int half) const {
    const uint8_t* block = panel_ + at / kParts * PanelBlockBytes(kType);
    const int column = first_ + half * kColumns;
    if (ask_ && half == 0 && at % kParts == 0) {
      for (int64_t line = 0; line < PanelBlockBytes(kType); line += kLineBytes) {
        _mm_prefetch(reinterpret_cast<const char*>(block + kAheadBytes + line), _MM_HINT_T0);
      }
    }
    uint8_t* lines = buffers_->weights[i][half];
    const uint8_t* w = block + at % kParts * kIntegers / 2 + 4 * column;
    if constexpr (HasBytes(kType)) {
      const __m512i centre = _mm512_set1_epi8(-128);
#pragma GCC unroll 8
      for (int q = 0; q < kInputs / 4; ++q) {
        const __m512i line = _mm512_loadu_si512(w + q * kQuadBytes);
        _mm512_store_si512(lines + q * kLineBytes, _mm512_xor_si512(line, centre));
      }
    } else {
      const __m512i nibble = _mm512_set1_epi8(15);
      const __m512i centre = _mm512_set1_epi8(kType == WeightType::kInt4 ? 8 : 0);
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        const __m512i line = _mm512_loadu_si512(w + q * kQuadBytes);
        const __m512i low = _mm512_and_si512(line, nibble);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(line, 4), nibble);
        _mm512_store_si512(lines + q * kLineBytes, _mm512_sub_epi8(low, centre));
        _mm512_store_si512(lines + (4 + q) * kLineBytes, _mm512_sub_epi8(high, centre));
      }
    }
  }
  /*! \brief Multiplies unit `unit` of a chunk: a half of a part. Each turn has tiles of its own. */
  template <int kTurn>
  KVCTL_INLINE void Multiply(int64_t at, int unit) const {
    const int i = unit / kHalves, half = unit % kHalves;
    const int8_t* x = x_.values + x_.At(row_, (at + i) / kParts, blocks_) * kBlockInputs +
                      (at + i) % kParts * kInputs;
    const uint8_t* w = buffers_->weights[i][half];
    int32_t* dots = buffers_->dots[i][half];
    // Tiles are named by constants.
    if constexpr (kTurn == 0) {
      _tile_loadd(4, x, kBlockInputs);
      _tile_loadd(6, w, kLineBytes);
      _tile_zero(0);
      _tile_dpbssd(0, 4, 6);
      _tile_stored(0, dots, kLineBytes);
    } else if constexpr (kTurn == 1) {
      _tile_loadd(5, x, kBlockInputs);
      _tile_loadd(7, w, kLineBytes);
      _tile_zero(1);
      _tile_dpbssd(1, 5, 7);
      _tile_stored(1, dots, kLineBytes);
    } else if constexpr (kTurn == 2) {
      _tile_loadd(4, x, kBlockInputs);
      _tile_loadd(6, w, kLineBytes);
      _tile_zero(2);
      _tile_dpbssd(2, 4, 6);
      _tile_stored(2, dots, kLineBytes);
    } else {
      _tile_loadd(5, x, kBlockInputs);
      _tile_loadd(7, w, kLineBytes);
      _tile_zero(3);
      _tile_dpbssd(3, 5, 7);
      _tile_stored(3, dots, kLineBytes);
    }
  }
  /*! \brief Adds the products of part `at`, which is part i of the chunk. */
  KVCTL_INLINE void Add(int64_t at, int i) {
    const int64_t b = at / kParts, part = at % kParts, first_row = x_.At(row_, b, blocks_);
    const uint8_t* data = panel_ + b * PanelBlockBytes(kType) + kIntegers;
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      const int column = first_ + half * kColumns;
      __m512 scale = LoadHalves(data + 2 * column);
      const uint8_t* factors = data + (4 + part) * kQuantizedWidth + column;
      if constexpr (kType == WeightType::kInt4Offset) {
        scale = _mm512_mul_ps(scale, LoadUnsigned(factors));
      } else if constexpr (kType == WeightType::kInt8Parts) {
        scale = _mm512_mul_ps(scale, LoadSigned(factors));
      }
      const int32_t* dots = buffers_->dots[i][half];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(dots + r * kColumns));
        const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(x_.scales[first_row + r]));
        sums_[r * kHalves + half] = _mm512_fmadd_ps(dot, factor, sums_[r * kHalves + half]);
      }
      if (!HasOffset(kType) || part + 1 < kParts) continue;
      const __m512 step =
          _mm512_mul_ps(LoadHalves(data + 2 * kQuantizedWidth + 2 * column),
                        LoadUnsigned(data + (4 + kParts) * kQuantizedWidth + column));
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const __m512 x_sum = _mm512_set1_ps(x_.sums[first_row + r]);
        sums_[r * kHalves + half] = _mm512_fmadd_ps(x_sum, step, sums_[r * kHalves + half]);
      }
    }
  }

  const QuantizedRows x_;
  const int64_t blocks_, row_;
  const uint8_t* const panel_;
  const int first_;
  const bool ask_;
  Buffers* const buffers_;
  __m512 sums_[kRows * kHalves];
};

/*! \brief Writes rows [row, row + rows) of a panel's outputs. */
template <int kRows, int kHalves, WeightType kType>
void RowsOfPanel(const QuantizedProduct& product, int64_t row, int64_t p) {
  const int64_t rows = product.m - row < kRows ? product.m - row : kRows;
  const uint8_t* panel = product.panels + p * product.blocks * PanelBlockBytes(kType);
  Configure(kRows, Block<kRows, kHalves, kType>::kInputs);
  Buffers buffers;
  for (int first = 0; first < kQuantizedWidth; first += kHalves * kColumns) {
    Block<kRows, kHalves, kType> block(product, row, panel, first, row == 0 && first == 0,
                                       &buffers);
    block.Run();
    for (int half = 0; half < kHalves; ++half) {
      const int64_t column = p * kQuantizedWidth + first + half * kColumns;
      const int64_t count = product.n - column < kColumns ? product.n - column : kColumns;
      if (count <= 0) continue;
      const auto mask = static_cast<__mmask16>((1u << count) - 1);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) break;
        const int64_t at = (row + r) * product.n + column;
        __m512 sum = block.sum(r, half);
        if (product.addend != nullptr) {
          sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, product.addend + at));
        }
        _mm512_mask_storeu_ps(product.out + at, mask, sum);
      }
    }
  }
}

/*! \brief The rows of product.x behind m, up to a multiple of kTileRows, are read and not used. */
template <WeightType kType>
void TilePanels(const QuantizedProduct& product, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    int64_t row = 0;
    for (; product.m - row > 12; row += kTileRows) RowsOfPanel<16, 1, kType>(product, row, p);
    const int64_t left = product.m - row;
    if (left > 8) {
      RowsOfPanel<12, 1, kType>(product, row, p);
    } else if (left > 4) {
      RowsOfPanel<8, 2, kType>(product, row, p);
    } else if (left > 0) {
      RowsOfPanel<4, 2, kType>(product, row, p);
    }
  }
  _tile_release();
}

}  // namespace

const QuantizedPanels kQuantizedTiles[4] = {
    TilePanels<WeightType::kInt8>, TilePanels<WeightType::kInt4>,
    TilePanels<WeightType::kInt4Offset>, TilePanels<WeightType::kInt8Parts>};

}  // namespace kvctl
