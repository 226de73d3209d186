/*!
 * \file kernels/cpu/quantized/linear_quantized-inl.h
 * \brief The product of linear_quantized.h, for the instruction set of the including file.
 *
 * Blocks of a panel are processed in chunks that stay in the first-level cache while groups of rows
 * pass over them, so weights are read from DRAM once. Between chunks the sums are stored in
 * float32, which changes no bit of them.
 */
#ifndef KVCTL_KERNELS_CPU_QUANTIZED_LINEAR_QUANTIZED_INL_H_
#define KVCTL_KERNELS_CPU_QUANTIZED_LINEAR_QUANTIZED_INL_H_

#include "kernels/cpu/quantized/linear_quantized.h"
#include "kernels/cpu/quantized/quantize_inputs-inl.h"
#include "kernels/cpu/quantized/quantized_lanes-inl.h"

namespace kvctl {
namespace {

constexpr int kGroupRows = 48;       // rows that pass over a chunk before the next one
constexpr int64_t kChunkBlocks = 8;  // blocks of inputs of a chunk
// How far ahead of the products weights are asked for: of memory into the second-level cache, which
// waits for more lines at once than the first does, and then into the first.
constexpr int64_t kFarBytes = 32768;
constexpr int64_t kAheadBytes = 8192;
constexpr int kLine = 64;  // bytes of a cache line
constexpr int kVecs = kQuantizedWidth / Vec::kLanes;
// The inputs of a row's block lie behind those of the row before it.
constexpr int64_t kRowStride = kBlockInputs;
static_assert(kRowsTogether % kRows8 == 0 && kRowsTogether % kRows4 == 0 &&
              kGroupRows % kRowsTogether == 0);
constexpr int kQuadBytes = 4 * kQuantizedWidth;  // of four inputs of all columns

constexpr int RowsOf(WeightType type) { return HasBytes(type) ? kRows8 : kRows4; }
constexpr int VecsOf(WeightType type) { return HasBytes(type) ? kVecsTogether8 : kVecsTogether4; }

/*! \brief Blocks of a panel from block `at` on, and the rows that are multiplied by them. */
struct Chunk {
  const QuantizedProduct& product;
  int64_t place;  //!< of the first row's block `at`
  int64_t at;
  int64_t count;
  const uint8_t* panel;
  bool ask;  //!< for the weights that follow
};

/*! \brief The integer products of a part of a block with one row, as floats. */
template <int kRows, WeightType kType>
struct Dots {
  static constexpr bool kBytes = HasBytes(kType);
  static constexpr int kParts = kType == WeightType::kInt8Parts ? 2 : 1;
  static constexpr int kLines = (kBytes ? 8 : 4) / kParts;
  static constexpr int kTogether = VecsOf(kType);

  Sum8 sums8[kRows][kTogether];
  Sum4 sums4[kRows][kTogether];

  static int32_t OffsetOf(const BlockOffsets& offsets, int part) {
    if constexpr (kType == WeightType::kInt8Parts) return offsets.parts[part];
    if constexpr (kType == WeightType::kInt8) return offsets.bytes;
    return kType == WeightType::kInt4 ? offsets.halves : 0;
  }

  /*!
   * \param w The first line of the first vector.
   * \param x The inputs of the first row; those of the others follow.
   * \param offsets Of each row's block.
   */
  void Multiply(const uint8_t* w, const int8_t* x, const BlockOffsets* offsets, int part) {
    // Else the compiler loads a block's inputs once for all columns, to more registers than it has.
    __asm__ volatile("" : "+r"(x));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const int32_t offset = OffsetOf(offsets[r], part);
      for (int u = 0; u < kTogether; ++u) {
        if constexpr (kBytes) sums8[r][u] = Start8(offset);
        if constexpr (!kBytes) sums4[r][u] = Start4(offset);
      }
    }
#pragma GCC unroll 8
    for (int q = 0; q < kLines; ++q) {
      Lanes line[kTogether];
      for (int u = 0; u < kTogether; ++u) {
        line[u] = LoadBytes(w + q * kQuadBytes + u * 4 * Vec::kLanes);
      }
      if constexpr (kBytes) {
        Line8 bytes[kTogether];
        for (int u = 0; u < kTogether; ++u) bytes[u] = ToLine8(line[u]);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const int32_t quad = Quad(x + r * kRowStride + 4 * q);
          for (int u = 0; u < kTogether; ++u) Dot8(&sums8[r][u], bytes[u], quad);
        }
      } else {
        Line4 halves[kTogether];
        for (int u = 0; u < kTogether; ++u) halves[u] = ToLine4(line[u]);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const int32_t quad = Quad(x + r * kRowStride + 4 * q);
          for (int u = 0; u < kTogether; ++u) Dot4(&sums4[r][u], halves[u].low, quad);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const int32_t quad = Quad(x + r * kRowStride + kBlockInputs / 2 + 4 * q);
          for (int u = 0; u < kTogether; ++u) Dot4(&sums4[r][u], halves[u].high, quad);
        }
      }
    }
  }

  Vec Finish(int r, int u, const BlockOffsets& offsets) const {
    if constexpr (kBytes) return Finish8(sums8[r][u]);
    return Finish4(sums4[r][u], OffsetOf(offsets, 0));
  }
};

/*! \brief What follows the integers of a panel's block, from a vector of columns on. */
template <WeightType kType>
struct Scales {
  static constexpr int kHalves = 2 * kQuantizedWidth;  // bytes of all columns' float16
  const uint8_t* data;
  int column;

  Vec Of(int part) const {
    const Vec scale = LoadHalves(data + 2 * column);
    const uint8_t* factors = data + 2 * kHalves + part * kQuantizedWidth + column;
    if constexpr (kType == WeightType::kInt4Offset) return Mul(scale, LoadUnsigned(factors));
    if constexpr (kType == WeightType::kInt8Parts) return Mul(scale, LoadSigned(factors));
    return scale;
  }
  Vec Step() const {
    constexpr int kParts = kType == WeightType::kInt8Parts ? 2 : 1;
    const uint8_t* factors = data + 2 * kHalves + kParts * kQuantizedWidth + column;
    return Mul(LoadHalves(data + kHalves + 2 * column), LoadUnsigned(factors));
  }
};

/*! \brief Adds a chunk's products with kRows rows to (kRows, 32) sums. */
template <int kRows, WeightType kType>
void ChunkOfRows(const Chunk& chunk, float* sums) {
  using Products = Dots<kRows, kType>;
  constexpr int64_t kBlock = PanelBlockBytes(kType);
  constexpr int kPartBytes = Products::kLines * kQuadBytes;
  const QuantizedProduct& product = chunk.product;
  for (int64_t b = 0; b < chunk.count; ++b) {
    const uint8_t* w = chunk.panel + PanelIntegersAt(kType, chunk.at + b);
    const uint8_t* head = chunk.panel + PanelHeadAt(kType, chunk.at + b, product.blocks);
    if (chunk.ask) {
      const uint8_t* block = chunk.panel + (chunk.at + b) * kBlock;
      for (int64_t line = 0; line < kBlock; line += kLine) {
        __builtin_prefetch(block + kFarBytes + line, 0, 2);
        __builtin_prefetch(block + kAheadBytes + line);
      }
    }
    const int64_t first = chunk.place + b * kRowsTogether;
    const int8_t* x = product.x.values + first * kBlockInputs;
    const BlockOffsets* offsets = product.x.offsets + first;
#pragma GCC unroll 1
    for (int v = 0; v < kVecs; v += Products::kTogether) {
      float* part_sums = sums + v * Vec::kLanes;
      for (int part = 0; part < Products::kParts; ++part) {
        Products dots;
        dots.Multiply(w + part * kPartBytes + v * 4 * Vec::kLanes, x + part * kBlockInputs / 2,
                      offsets, part);
        for (int u = 0; u < Products::kTogether; ++u) {
          const int column = (v + u) * Vec::kLanes;
          const Vec scale = Scales<kType>{head, column}.Of(part);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            float* sum = part_sums + r * kQuantizedWidth + u * Vec::kLanes;
            const Vec dot = dots.Finish(r, u, offsets[r]);
            Store(sum, Fma(dot, Mul(scale, Splat(product.x.scales[first + r])), Load(sum)));
          }
        }
      }
      if constexpr (HasOffset(kType)) {
        for (int u = 0; u < Products::kTogether; ++u) {
          const int column = (v + u) * Vec::kLanes;
          const Vec step = Scales<kType>{head, column}.Step();
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            float* sum = part_sums + r * kQuantizedWidth + u * Vec::kLanes;
            Store(sum, Fma(Splat(product.x.sums[first + r]), step, Load(sum)));
          }
        }
      }
    }
  }
}

/*! \brief Calls ChunkOfRows for a number of rows from 1 to kRows. */
template <int kRows, WeightType kType>
void ChunkFor(int rows, const Chunk& chunk, float* sums) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return ChunkFor<kRows - 1, kType>(rows, chunk, sums);
  }
  ChunkOfRows<kRows, kType>(chunk, sums);
}

/*! \brief Computes (rows, 32) sums of one panel. */
template <WeightType kType>
void GroupOfRows(const QuantizedProduct& product, int64_t row, int rows, const uint8_t* panel,
                 float* sums) {
  constexpr int kTogether = RowsOf(kType);
  for (int i = 0; i < rows * kQuantizedWidth; ++i) sums[i] = 0.0f;
  for (int64_t at = 0; at < product.blocks; at += kChunkBlocks) {
    const int64_t count = product.blocks - at < kChunkBlocks ? product.blocks - at : kChunkBlocks;
    for (int r = 0; r < rows; r += kTogether) {
      const int part_rows = rows - r < kTogether ? rows - r : kTogether;
      const Chunk chunk{product, product.x.At(row + r, at, product.blocks), at, count, panel,
                        r == 0};
      ChunkFor<kTogether, kType>(part_rows, chunk, sums + r * kQuantizedWidth);
    }
  }
}

template <WeightType kType>
void QuantizedPanels(const QuantizedProduct& product, int64_t begin, int64_t end) {
  alignas(64) float sums[kGroupRows * kQuantizedWidth];
  for (int64_t p = begin; p < end; ++p) {
    const uint8_t* panel = product.panels + p * product.blocks * PanelBlockBytes(kType);
    const int64_t column = p * kQuantizedWidth;
    const int64_t columns =
        product.n - column < kQuantizedWidth ? product.n - column : kQuantizedWidth;
    for (int64_t row = 0; row < product.m; row += kGroupRows) {
      const int rows =
          static_cast<int>(product.m - row < kGroupRows ? product.m - row : kGroupRows);
      GroupOfRows<kType>(product, row, rows, panel, sums);
      for (int r = 0; r < rows; ++r) {
        const int64_t at = (row + r) * product.n + column;
        const float* row_sums = sums + r * kQuantizedWidth;
        if (columns == kQuantizedWidth) {
          for (int64_t c = 0; c < kQuantizedWidth; c += Vec::kLanes) {
            const Vec sum = Load(row_sums + c);
            Store(product.out + at + c,
                  product.addend == nullptr ? sum : Add(sum, Load(product.addend + at + c)));
          }
          continue;
        }
        for (int64_t c = 0; c < columns; ++c) {
          product.out[at + c] =
              product.addend == nullptr ? row_sums[c] : row_sums[c] + product.addend[at + c];
        }
      }
    }
  }
}

constexpr QuantizedKernels kQuantizedKernels = {
    QuantizeRow,
    {QuantizedPanels<WeightType::kInt8>, QuantizedPanels<WeightType::kInt4>,
     QuantizedPanels<WeightType::kInt4Offset>, QuantizedPanels<WeightType::kInt8Parts>}};

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_QUANTIZED_LINEAR_QUANTIZED_INL_H_
