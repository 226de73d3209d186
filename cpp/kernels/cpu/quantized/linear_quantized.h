/*!
 * \file kernels/cpu/quantized/linear_quantized.h
 * \brief Linear layers whose weights have 8 or 4 bits.
 *
 * Inputs are quantised too, to 8 bits with one scale per row and 32 inputs, so that products are
 * products of bytes: they and their sums over 32 inputs are exact, in any order. What is rounded is
 * the sum over blocks, in ascending order, for any number of rows: a row's result is the same bits
 * alone or beside others.
 *
 * A panel is 32 output columns wide. A block of a panel holds four inputs of each column side by
 * side (eight lines of 128 unsigned bytes, weight + 128; with 4 bits four lines, whose high halves
 * are the inputs from 16 on, weight + 8), and then the columns' float16 scales.
 */
#ifndef KVCTL_KERNELS_CPU_QUANTIZED_LINEAR_QUANTIZED_H_
#define KVCTL_KERNELS_CPU_QUANTIZED_LINEAR_QUANTIZED_H_

#include <cstdint>

#include "kernels/isa.h"
#include "kernels/quantized_blocks.h"

namespace kvctl {

constexpr int kQuantizedWidth = 32;  //!< output columns of a panel

/*! \brief Bytes of one block of a panel. */
constexpr int64_t PanelBlockBytes(WeightType type) {
  return kQuantizedWidth * (2 + (type == WeightType::kInt8 ? kBlockInputs : kBlockInputs / 2));
}

/*! \brief Rows of inputs, quantised. */
struct QuantizedRows {
  int8_t* values;    //!< (m, blocks, 32), from -127 to 127
  float* scales;     //!< (m, blocks); NaN where an input of the block is not finite
  int32_t* offsets;  //!< (m, blocks): minus the sum of the values
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

/*! \brief The kernels of one instruction set. */
struct QuantizedKernels {
  /*! \brief Quantises row `row` of x, which has 32 * blocks inputs. */
  void (*quantize_row)(const float* x, int64_t row, int64_t blocks, const QuantizedRows& out);
  /*! \brief Computes the output columns of panels [begin, end). */
  void (*int8)(const QuantizedProduct& product, int64_t begin, int64_t end);
  void (*int4)(const QuantizedProduct& product, int64_t begin, int64_t end);
};

extern const QuantizedKernels kQuantizedKernelsBaseline;
extern const QuantizedKernels kQuantizedKernelsAvx2;
extern const QuantizedKernels kQuantizedKernelsVnni;

/*! \brief Packs blocks into panels. */
void PackQuantizedPanels(const uint8_t* blocks, int64_t n, int64_t k, WeightType type, void* out);

/*! \brief out = x Wᵀ + addend; see Linear. */
void LinearQuantized(const float* x, int64_t m, const void* panels, int64_t n, int64_t k,
                     WeightType type, const float* addend, float* out);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_QUANTIZED_LINEAR_QUANTIZED_H_
