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
#include "kernels/cpu/quantized/quantized_lanes-inl.h"

namespace kvctl {
namespace {

constexpr int kGroupRows = 48;         // rows that pass over a chunk before the next one
constexpr int64_t kChunkBlocks = 8;    // blocks of inputs of a chunk
constexpr int64_t kAheadBytes = 8192;  // how far ahead of the products weights are asked for
constexpr int kLine = 64;              // bytes of a cache line
constexpr int kVecs = kQuantizedWidth / Vec::kLanes;
constexpr int kVecsTogether = kVecs < 2 ? kVecs : 2;

/*! \brief Quantises 32 inputs to nearest, ties to even. */
inline void QuantizeInputs(const float* x, int8_t* values, float* scale, int32_t* offset) {
  uint32_t largest = 0;  // as bits: NaN and infinity are the largest
  for (int i = 0; i < kBlockInputs; ++i) {
    const uint32_t magnitude = ToBits(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float magnitude = FromBits(largest);
  const bool finite = largest < 0x7f800000u;
  // Below this the inverse would overflow: such inputs count as zero.
  const bool zero = !finite || magnitude < 1e-30f;
  const float inverse = zero ? 0.0f : 127.0f / magnitude;
  *scale = finite ? (zero ? 0.0f : magnitude / 127.0f) : FromBits(0x7fc00000u);
  int32_t sum = 0;
  for (int i = 0; i < kBlockInputs; ++i) {
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
    const float value = zero ? 0.0f : x[i];
    const auto q = static_cast<int32_t>(ToBits(value * inverse + 12582912.0f) - 0x4b400000u);
    values[i] = static_cast<int8_t>(q);
    sum -= q;
  }
  *offset = sum;
}

void QuantizeRow(const float* x, int64_t row, int64_t blocks, const QuantizedRows& out) {
  for (int64_t b = row * blocks; b < (row + 1) * blocks; ++b) {
    QuantizeInputs(x + b * kBlockInputs, out.values + b * kBlockInputs, out.scales + b,
                   out.offsets + b);
  }
}

/*! \brief Adds a chunk's products with kRows rows, from block `at` on, to (kRows, 32) sums. */
template <int kRows, bool kBytes>
void ChunkOfRows(const QuantizedProduct& product, int64_t row, int64_t at, int64_t count,
                 const uint8_t* w, bool ask, float* sums) {
  constexpr WeightType kType = kBytes ? WeightType::kInt8 : WeightType::kInt4;
  constexpr int64_t kBlock = PanelBlockBytes(kType);
  constexpr int kQuads = kBytes ? 8 : 4;
  constexpr int kQuadBytes = 4 * kQuantizedWidth;
  for (int64_t b = 0; b < count; ++b, w += kBlock) {
    if (ask) {
      for (int64_t line = 0; line < kBlock; line += kLine) {
        __builtin_prefetch(w + kAheadBytes + line);
      }
    }
    const int64_t first = row * product.blocks + at + b;
    for (int v = 0; v < kVecs; v += kVecsTogether) {
      Lanes dots[kRows][kVecsTogether];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        for (int u = 0; u < kVecsTogether; ++u) dots[r][u] = ZeroLanes();
      }
#pragma GCC unroll 8
      for (int q = 0; q < kQuads; ++q) {
        Lanes line[kVecsTogether], high[kVecsTogether];
        for (int u = 0; u < kVecsTogether; ++u) {
          line[u] = LoadBytes(w + q * kQuadBytes + (v + u) * 4 * Vec::kLanes);
          if (!kBytes) {
            high[u] = HighHalves(line[u]);
            line[u] = LowHalves(line[u]);
          }
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const int8_t* x = product.x.values + (first + r * product.blocks) * kBlockInputs + 4 * q;
          for (int u = 0; u < kVecsTogether; ++u) {
            if (kBytes) {
              dots[r][u] = DotInt8(dots[r][u], line[u], Quad(x));
            } else {
              dots[r][u] = DotInt4(dots[r][u], line[u], Quad(x));
              dots[r][u] = DotInt4(dots[r][u], high[u], Quad(x + kBlockInputs / 2));
            }
          }
        }
      }
      const uint8_t* scales = w + kQuads * kQuadBytes + 2 * v * Vec::kLanes;
      for (int u = 0; u < kVecsTogether; ++u) {
        const Vec scale = LoadScales(scales + 2 * u * Vec::kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const int64_t block = first + r * product.blocks;
          float* sum = sums + r * kQuantizedWidth + (v + u) * Vec::kLanes;
          const int32_t offset = product.x.offsets[block];
          const Vec dot = kBytes ? FinishInt8(dots[r][u], offset) : FinishInt4(dots[r][u], offset);
          Store(sum, Fma(dot, Mul(scale, Splat(product.x.scales[block])), Load(sum)));
        }
      }
    }
  }
}

template <bool kBytes>
auto ChunkFor(int rows) {
  using Function =
      void (*)(const QuantizedProduct&, int64_t, int64_t, int64_t, const uint8_t*, bool, float*);
  static constexpr Function kChunks[] = {
      nullptr,
      ChunkOfRows<1, kBytes>,
      ChunkOfRows<2, kBytes>,
#if defined(__AVX2__)
      ChunkOfRows<3, kBytes>,
      ChunkOfRows<4, kBytes>,
#endif
#if defined(__AVX512VNNI__)
      ChunkOfRows<5, kBytes>,
      ChunkOfRows<6, kBytes>,
      ChunkOfRows<7, kBytes>,
      ChunkOfRows<8, kBytes>,
#endif
  };
  static_assert(sizeof(kChunks) / sizeof(kChunks[0]) == kRowsTogether + 1,
                "one function per number of rows");
  return kChunks[rows];
}

/*! \brief Computes (rows, 32) sums of one panel. */
template <bool kBytes>
void GroupOfRows(const QuantizedProduct& product, int64_t row, int rows, const uint8_t* panel,
                 float* sums) {
  constexpr int64_t kBlock = PanelBlockBytes(kBytes ? WeightType::kInt8 : WeightType::kInt4);
  for (int i = 0; i < rows * kQuantizedWidth; ++i) sums[i] = 0.0f;
  const int parts = (rows + kRowsTogether - 1) / kRowsTogether;
  for (int64_t at = 0; at < product.blocks; at += kChunkBlocks) {
    const int64_t count = product.blocks - at < kChunkBlocks ? product.blocks - at : kChunkBlocks;
    for (int part = 0, r = 0; part < parts; ++part) {
      const int part_rows = (rows - r) / (parts - part);
      ChunkFor<kBytes>(part_rows)(product, row + r, at, count, panel + at * kBlock, part == 0,
                                  sums + r * kQuantizedWidth);
      r += part_rows;
    }
  }
}

template <bool kBytes>
void QuantizedPanels(const QuantizedProduct& product, int64_t begin, int64_t end) {
  alignas(64) float sums[kGroupRows * kQuantizedWidth];
  constexpr int64_t kBlock = PanelBlockBytes(kBytes ? WeightType::kInt8 : WeightType::kInt4);
  for (int64_t p = begin; p < end; ++p) {
    const uint8_t* panel = product.panels + p * product.blocks * kBlock;
    const int64_t column = p * kQuantizedWidth;
    const int64_t columns =
        product.n - column < kQuantizedWidth ? product.n - column : kQuantizedWidth;
    for (int64_t row = 0; row < product.m; row += kGroupRows) {
      const int rows =
          static_cast<int>(product.m - row < kGroupRows ? product.m - row : kGroupRows);
      GroupOfRows<kBytes>(product, row, rows, panel, sums);
      for (int r = 0; r < rows; ++r) {
        const int64_t at = (row + r) * product.n + column;
        for (int64_t c = 0; c < columns; ++c) {
          const float sum = sums[r * kQuantizedWidth + c];
          product.out[at + c] = product.addend == nullptr ? sum : sum + product.addend[at + c];
        }
      }
    }
  }
}

constexpr QuantizedKernels kQuantizedKernels = {QuantizeRow, QuantizedPanels<true>,
                                                QuantizedPanels<false>};

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_QUANTIZED_LINEAR_QUANTIZED_INL_H_
