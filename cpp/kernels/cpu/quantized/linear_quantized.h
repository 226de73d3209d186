/*!
 * \file kernels/cpu/quantized/linear_quantized.h
 * \brief Linear layers whose weights have 8 or 4 bits.
 *
 * Inputs are quantised too, to 8 bits with one scale per row and 32 inputs, so that products are
 * products of bytes: they and their sums over 32 inputs are exact, in any order. What is rounded is
 * the sum over blocks, in ascending order, for any number of rows: a row's result is the same bits
 * alone or beside others.
 *
 * A panel is 32 output columns wide. A block of a panel has integers, four inputs of each column
 * side by side (eight lines of 128 unsigned bytes, weight + 128; with 4 bits four lines, whose high
 * halves are the inputs from 16 on), and a head: the columns' float16 scales, and where blocks have
 * an offset the columns' float16 steps, the bytes that multiply scales (of each part), and those
 * that multiply steps. The integers of two blocks lie one behind the other, and then their heads,
 * so that one tile takes the lines of both; a last block without another has its head behind it.
 */
#ifndef KVCTL_KERNELS_CPU_QUANTIZED_LINEAR_QUANTIZED_H_
#define KVCTL_KERNELS_CPU_QUANTIZED_LINEAR_QUANTIZED_H_

#include <cstdint>

#include "kernels/isa.h"
#include "kernels/quantized_blocks.h"

namespace kvctl {

constexpr int kQuantizedWidth = 32;  //!< output columns of a panel

/*! \brief Bytes of one block of a panel. */
constexpr int64_t PanelBlockBytes(WeightType type) { return kQuantizedWidth * BlockBytes(type); }

/*! \brief Bytes of the integers of one block of a panel. */
constexpr int64_t PanelIntegerBytes(WeightType type) {
  return kQuantizedWidth * (BlockBytes(type) - BlockHeadBytes(type));
}

/*! \brief Where the integers of block b of a panel begin. */
constexpr int64_t PanelIntegersAt(WeightType type, int64_t b) {
  return b / 2 * 2 * PanelBlockBytes(type) + b % 2 * PanelIntegerBytes(type);
}

/*! \brief Where the head of block b of a panel of `blocks` begins. */
constexpr int64_t PanelHeadAt(WeightType type, int64_t b, int64_t blocks) {
  const int64_t pair = b / 2 * 2;
  const int64_t together = pair + 1 < blocks ? 2 : 1;
  return pair * PanelBlockBytes(type) + together * PanelIntegerBytes(type) +
         (b - pair) * kQuantizedWidth * BlockHeadBytes(type);
}

constexpr int64_t kRowsTogether = 8;       //!< rows whose blocks lie side by side
constexpr int64_t kTileRowsTogether = 16;  //!< the same for tiles, which hold sixteen rows

/*!
 * \brief Rows of which one tile holds two parts of the inputs, each in lines of their own beside
 * zeros: a tile of products is stored in the same time however many of its lines are used.
 */
constexpr int64_t kSpreadRows = 8;
constexpr int64_t kSpreadBytes = 64;  //!< of a line of such a tile

/*! \brief What is added to the products of a row's block for weights that are stored unsigned. */
struct BlockOffsets {
  int32_t parts[2];  //!< -128 times the sum of the first 16 values, and of the others
  int32_t bytes;     //!< -128 times the sum of all values
  int32_t halves;    //!< -8 times that sum
};

/*!
 * \brief Rows of inputs, quantised.
 *
 * The blocks of `together` rows lie side by side, so that a kernel finds those of its rows at
 * distances that it knows when it is compiled.
 */
struct QuantizedRows {
  int8_t* values;         //!< of each block 32, from -127 to 127
  float* scales;          //!< of each block one; NaN where an input of the block is not finite
  BlockOffsets* offsets;  //!< of each block
  float* sums;            //!< of each block scale * (minus the sum of the values)
  int64_t together;
  int8_t* spread;  //!< for tiles of up to kSpreadRows rows: tiles of inputs, see SpreadRow

  /*! \brief The place of block b of a row of `blocks`. */
  int64_t At(int64_t row, int64_t b, int64_t blocks) const {
    return (row / together * blocks + b) * together + row % together;
  }
};

/*! \brief One product of quantised rows and panels. */
struct QuantizedProduct {
  QuantizedRows x;
  const uint8_t* panels;
  const float* addend;  //!< (m, n) or nullptr
  float* out;           //!< (m, n)
  int64_t m;
  int64_t n;
  int64_t blocks;
};

/*! \brief Computes the output columns of panels [begin, end). */
using QuantizedPanels = void (*)(const QuantizedProduct& product, int64_t begin, int64_t end);

/*! \brief The kernels of one instruction set. */
struct QuantizedKernels {
  /*! \brief Quantises row `row` of x, which has 32 * blocks inputs. */
  void (*quantize_row)(const float* x, int64_t row, int64_t blocks, const QuantizedRows& out);
  QuantizedPanels panels[4];  //!< by WeightType, from kInt8 on
};

extern const QuantizedKernels kQuantizedKernelsBaseline;
extern const QuantizedKernels kQuantizedKernelsAvx2;
extern const QuantizedKernels kQuantizedKernelsAvxVnni;
extern const QuantizedKernels kQuantizedKernelsVnni;

/*!
 * \brief The same on AMX tiles, only where CpuHasTiles(): the bits of kQuantizedKernelsVnni. The
 * blocks of sixteen rows are together, and rows behind m, up to a multiple of sixteen, are read. Up
 * to kSpreadRows rows take an even number of blocks (or of parts) and are spread.
 */
extern const QuantizedPanels kQuantizedTiles[4];

/*! \brief The number of rows from which tiles take less time than products of bytes. */
int64_t QuantizedTileRows();

/*! \brief See LinearKernels. */
std::vector<LinearKernel> QuantizedKernelNames();

/*! \brief Packs blocks into panels. */
void PackQuantizedPanels(const uint8_t* blocks, int64_t n, int64_t k, WeightType type, void* out);

/*! \brief out = x Wᵀ + addend; see Linear. */
void LinearQuantized(const float* x, int64_t m, const void* panels, int64_t n, int64_t k,
                     WeightType type, const float* addend, float* out);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_QUANTIZED_LINEAR_QUANTIZED_H_
