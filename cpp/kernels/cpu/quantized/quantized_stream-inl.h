/*!
 * \file kernels/cpu/quantized/quantized_stream-inl.h
 * \brief Panels of quantised weights that stream through AMX tiles.
 */
#ifndef KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZED_STREAM_INL_H_
#define KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZED_STREAM_INL_H_

#include "kernels/cpu/quantized/quantized_tiles-inl.h"

namespace kvctl {
namespace {

/*! \brief Adds products of signed inputs and of weights: unsigned bytes as they are in memory, or
 * signed ones that were unpacked. Only a macro can pass the names of tiles on. */
#define KVCTL_MULTIPLY(sums, inputs, weights) \
  if constexpr (kUnpacks) {                   \
    _tile_dpbssd(sums, inputs, weights);      \
  } else {                                    \
    _tile_dpbsud(sums, inputs, weights);      \
  }

/*!
 * \brief kRows rows times panels, one unit after another: kPieces blocks, or parts of one, of
 * kHalves halves of a panel.
 *
 * A unit takes some turns: its weights are unpacked if they have 4 bits, then multiplied, then its
 * products stored, then added to the sums. In a turn each of these serves another unit, since none
 * of them can begin until the one before is done. Storing a tile takes long, whatever is in it:
 * rows that are spread fill one with the products of two pieces.
 * The sums stay in registers: no instruction that the compiler cannot look into has their address.
 */
template <int kRows, int kPieces, int kHalves, WeightType kType>
class Stream {
 public:
  static constexpr int kParts = kType == WeightType::kInt8Parts ? 2 : 1;
  static constexpr int kInputs = kBlockInputs / kParts;  // of a piece
  static constexpr int kTileInputs = kPieces * kInputs;
  static constexpr int64_t kIntegers = PanelIntegerBytes(kType);
  static constexpr int64_t kPieceBytes = PanelBlockBytes(kType) / kParts;

  KVCTL_INLINE Stream(const QuantizedProduct& product, int64_t row, int64_t panel, bool ask,
                      Buffers* buffers)
      : product_(product),
        x_(product.x),
        blocks_(product.blocks),
        row_(row),
        first_row_(x_.At(row, 0, product.blocks)),
        column_(panel * kQuantizedWidth),
        ask_(ask),
        buffers_(buffers) {
    multiply_.panel = product.panels + panel * blocks_ * PanelBlockBytes(kType);
    unpack_ = add_ = multiply_;
#pragma GCC unroll 16
    for (int i = 0; i < kRows * kHalves; ++i) sums_[i] = _mm512_setzero_ps();
  }

  /*! \brief Goes through `panels` panels. */
  KVCTL_INLINE void Run(int64_t panels) {
    const int64_t units = panels * (2 / kHalves) * blocks_ * kParts / kPieces;
    for (int64_t at = 0; at < units + kLast; at += 2) {
      Turn<0>(at, units);
      Turn<1>(at + 1, units);
    }
  }

 private:
  static constexpr bool kUnpacks = !HasBytes(kType);
  // After how many turns a unit is multiplied, stored and added.
  static constexpr int kMultiply = kUnpacks ? 1 : 0, kStore = kMultiply + 2, kLast = kStore + 1;

  /*! \brief The unit that is next at a stage. */
  struct Place {
    const uint8_t* panel;
    int64_t b = 0;
    int part = 0;
    int first = 0;  //!< column of the panel

    /*! \brief Returns whether the next unit begins other sums. */
    KVCTL_INLINE bool Next(int64_t blocks) {
      part += kPieces;
      if (part < kParts) return false;
      b += part / kParts;
      part = 0;
      if (b < blocks) return false;
      b = 0;
      if (kHalves == 1) {
        first = kColumns - first;
        if (first != 0) return true;
      }
      panel += blocks * PanelBlockBytes(kType);
      return true;
    }
  };

  template <int kTurn>
  KVCTL_INLINE void Turn(int64_t at, int64_t units) {
    const auto slot = [at](int turns) { return (at - turns) & (kSlots - 1); };
    const auto is_unit = [at, units](int turns) { return at >= turns && at - turns < units; };
    if (is_unit(kStore)) Store<(kTurn + kStore) % 2>(slot(kStore));
    if (is_unit(kLast)) Add(slot(kLast));
    if (is_unit(kMultiply)) Multiply<(kTurn + kMultiply) % 2>(slot(kMultiply));
    if (kUnpacks && is_unit(0)) Unpack(slot(0));
  }

  /*!
   * \brief Asks for row r's share of the weights that come later. All of a unit's at once would
   * fill what waits for lines of the caches, and its tiles be loaded behind them.
   */
  KVCTL_INLINE void Ask(const uint8_t* piece, int r) const {
    constexpr int kLines = static_cast<int>(kPieceBytes) / kLineBytes / kRows + 1;
    if (!ask_ || add_.first != 0) return;
    const char* at = reinterpret_cast<const char*>(piece + r * kLines * kLineBytes);
#pragma GCC unroll 4
    for (int line = 0; line < kLines; ++line, at += kLineBytes) {
      _mm_prefetch(at + FarBytes(kType), _MM_HINT_T1);
      _mm_prefetch(at + AheadBytes(kType), _MM_HINT_T0);
    }
  }

  /*! \brief Writes weights of 4 bits as bytes. */
  KVCTL_INLINE void Unpack(int64_t slot) {
    constexpr bool kSigned = kType == WeightType::kInt4;
    const __m512i low = _mm512_set1_epi64(kSigned ? kLowSigned : kLow);
    const __m512i high = _mm512_set1_epi64(kSigned ? kHighSigned : kHigh);
    constexpr int kFlipped = kSigned ? 0xf8 : 0;
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      const uint8_t* w =
          unpack_.panel + PanelIntegersAt(kType, unpack_.b) + 4 * (unpack_.first + half * kColumns);
#pragma GCC unroll 2
      for (int piece = 0; piece < kPieces; ++piece) {
        uint8_t* lines = buffers_->weights[slot][half] + piece * 8 * kLineBytes;
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          const __m512i line = _mm512_loadu_si512(w + piece * kIntegers + q * kQuadBytes);
          _mm512_store_si512(lines + q * kLineBytes,
                             _mm512_gf2p8affine_epi64_epi8(line, low, kFlipped));
          _mm512_store_si512(lines + (4 + q) * kLineBytes,
                             _mm512_gf2p8affine_epi64_epi8(line, high, kFlipped));
        }
      }
    }
    unpack_.Next(blocks_);
  }

  /*! \brief Multiplies a unit. Each turn has tiles of its own, which are named by constants. */
  template <int kTurn>
  KVCTL_INLINE void Multiply(int64_t slot) {
    const int64_t piece = multiply_.b * kParts + multiply_.part;
    const int8_t* x = kPieces == 2
                          ? x_.spread + piece * kSpreadRows * kSpreadBytes
                          : x_.values + (first_row_ + multiply_.b * kTileRows) * kBlockInputs +
                                multiply_.part * kInputs;
    constexpr int64_t kInputStride = kPieces == 2 ? kSpreadBytes : kBlockInputs;
    constexpr int64_t kStride = kUnpacks ? kLineBytes : kQuadBytes;
    const uint8_t *w, *other;
    if constexpr (kUnpacks) {
      w = buffers_->weights[slot][0];
      other = buffers_->weights[slot][1];
      Written(buffers_->weights);
    } else {
      w = multiply_.panel + PanelIntegersAt(kType, multiply_.b) +
          multiply_.part * (kInputs / 4 * kQuadBytes) + 4 * multiply_.first;
      other = w + kLineBytes;
    }
    if constexpr (kTurn == 0) {
      _tile_loadd(4, x, kInputStride);
      _tile_loadd(6, w, kStride);
      _tile_zero(0);
      KVCTL_MULTIPLY(0, 4, 6);
      if constexpr (kHalves == 2) {
        _tile_loadd(7, other, kStride);
        _tile_zero(1);
        KVCTL_MULTIPLY(1, 4, 7);
      }
    } else {
      _tile_loadd(5, x, kInputStride);
      if constexpr (kHalves == 2) {
        _tile_loadd(6, w, kStride);
        _tile_zero(2);
        KVCTL_MULTIPLY(2, 5, 6);
        _tile_loadd(7, other, kStride);
        _tile_zero(3);
        KVCTL_MULTIPLY(3, 5, 7);
      } else {
        _tile_loadd(7, w, kStride);
        _tile_zero(2);
        KVCTL_MULTIPLY(2, 5, 7);
      }
    }
    multiply_.Next(blocks_);
  }

  template <int kTurn>
  KVCTL_INLINE void Store(int64_t slot) const {
    int32_t* dots = buffers_->dots[slot][0];
    int32_t* other = buffers_->dots[slot][1];
    if constexpr (kTurn == 0) {
      _tile_stored(0, dots, kLineBytes);
      if constexpr (kHalves == 2) _tile_stored(1, other, kLineBytes);
    } else {
      _tile_stored(2, dots, kLineBytes);
      if constexpr (kHalves == 2) _tile_stored(3, other, kLineBytes);
    }
  }

  /*! \brief What products lack whose weights are multiplied as unsigned bytes. */
  static int32_t OffsetOf(const BlockOffsets& offsets, int part) {
    return kParts == 2 ? offsets.parts[part] : offsets.bytes;
  }

  KVCTL_INLINE void Add(int64_t slot) {
#pragma GCC unroll 2
    for (int piece = 0; piece < kPieces; ++piece) {
      const int64_t b = add_.b + (kParts == 1 ? piece : 0);
      const int part = add_.part + (kParts == 1 ? 0 : piece);
      const uint8_t* head = add_.panel + PanelHeadAt(kType, b, blocks_);
      const int64_t first_row = first_row_ + b * kTileRows;
      AddPiece(head, first_row, part, slot, piece * kRows * kColumns,
               add_.panel + (b * kParts + part) * kPieceBytes);
      if (HasOffset(kType) && part + 1 == kParts) AddSteps(head, first_row);
    }
    if (add_.Next(blocks_)) Finish();
  }

  KVCTL_INLINE void AddPiece(const uint8_t* head, int64_t first_row, int part, int64_t slot,
                             int first_dot, const uint8_t* bytes) {
    __m512 scales[kHalves];
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      const int column = add_.first + half * kColumns;
      const uint8_t* factors = head + (4 + part) * kQuantizedWidth + column;
      scales[half] = LoadHalves(head + 2 * column);
      if constexpr (kType == WeightType::kInt4Offset) {
        scales[half] = _mm512_mul_ps(scales[half], LoadUnsigned(factors));
      } else if constexpr (kType == WeightType::kInt8Parts) {
        scales[half] = _mm512_mul_ps(scales[half], LoadSigned(factors));
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      Ask(bytes, r);
      const __m512 x_scale = _mm512_set1_ps(x_.scales[first_row + r]);
      const __m512i offset = _mm512_set1_epi32(OffsetOf(x_.offsets[first_row + r], part));
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half) {
        __m512i dot = _mm512_load_si512(buffers_->dots[slot][half] + first_dot + r * kColumns);
        if constexpr (HasBytes(kType)) dot = _mm512_add_epi32(dot, offset);
        __m512* sum = &sums_[r * kHalves + half];
        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scales[half], x_scale), *sum);
      }
    }
  }

  /*! \brief Adds what the offsets of a block's weights give. */
  KVCTL_INLINE void AddSteps(const uint8_t* head, int64_t first_row) {
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      const int column = add_.first + half * kColumns;
      const __m512 step =
          _mm512_mul_ps(LoadHalves(head + 2 * kQuantizedWidth + 2 * column),
                        LoadUnsigned(head + (4 + kParts) * kQuantizedWidth + column));
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const __m512 x_sum = _mm512_set1_ps(x_.sums[first_row + r]);
        sums_[r * kHalves + half] = _mm512_fmadd_ps(x_sum, step, sums_[r * kHalves + half]);
      }
    }
  }

  /*! \brief Writes sums that are complete, and begins others. */
  KVCTL_INLINE void Finish() {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half) {
        _mm512_store_ps(buffers_->sums[r] + half * kColumns, sums_[r * kHalves + half]);
        sums_[r * kHalves + half] = _mm512_setzero_ps();
      }
    }
    WriteOut(product_, *buffers_, row_, kRows, column_, kHalves);
    column_ += kHalves * kColumns;
  }

  const QuantizedProduct& product_;
  const QuantizedRows x_;
  const int64_t blocks_, row_, first_row_;
  int64_t column_;  //!< of the output
  const bool ask_;
  Buffers* const buffers_;
  Place unpack_, multiply_, add_;
  __m512 sums_[kRows * kHalves];
};

#undef KVCTL_MULTIPLY

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_QUANTIZED_QUANTIZED_STREAM_INL_H_
