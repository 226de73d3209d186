/*!
 * \file kernels/quantized_blocks.h
 * \brief Weights of 8 and 4 bits: blocks of 32 inputs of one output, with their scales.
 *
 * - kInt8: a float16 scale and 32 signed bytes, as GGUF's Q8_0. A weight is scale * integer.
 * - kInt4: a float16 scale and 16 bytes, whose low halves are inputs 0 to 15 and whose high halves
 *   are inputs 16 to 31, plus 8, as GGUF's Q4_0. A weight is scale * (integer - 8).
 * - kInt4Offset: a float16 scale, a float16 step of the offset, a byte that multiplies the scale
 *   and one that multiplies the step, all bytes being unsigned, and 16 bytes as above. A weight is
 *   (scale * byte) * integer - step * byte. GGUF's Q4_1 and Q4_K are such blocks.
 * - kInt8Parts: a float16 scale, a float16 step, two signed bytes, of which the first multiplies
 * the scale of inputs 0 to 15 and the second that of inputs 16 to 31, an unsigned byte that
 * multiplies the step, a zero, and 32 signed bytes. GGUF's Q6_K, Q5_1 and Q5_K are such blocks.
 *
 * A product of a scale and a byte is exact in float32.
 */
#ifndef KVCTL_KERNELS_QUANTIZED_BLOCKS_H_
#define KVCTL_KERNELS_QUANTIZED_BLOCKS_H_

#include <cstdint>

#include "kernels/linear.h"

namespace kvctl {

constexpr int kBlockInputs = 32;  //!< inputs of a block

/*! \brief Whether a type has blocks. */
constexpr bool IsQuantized(WeightType type) { return type >= WeightType::kInt8; }

/*! \brief Whether an integer of a block has 8 bits, not 4. */
constexpr bool HasBytes(WeightType type) {
  return type == WeightType::kInt8 || type == WeightType::kInt8Parts;
}

/*! \brief Whether a block has an offset, and scales that bytes multiply. */
constexpr bool HasOffset(WeightType type) {
  return type == WeightType::kInt4Offset || type == WeightType::kInt8Parts;
}

/*! \brief Bytes of a block before its integers. */
constexpr int BlockHeadBytes(WeightType type) {
  return type == WeightType::kInt4Offset ? 6 : type == WeightType::kInt8Parts ? 8 : 2;
}

/*! \brief Bytes of a block: 34 (kInt8), 18 (kInt4), 22 (kInt4Offset) or 40 (kInt8Parts). */
constexpr int BlockBytes(WeightType type) {
  return BlockHeadBytes(type) + (HasBytes(type) ? kBlockInputs : kBlockInputs / 2);
}

/*!
 * \brief Quantises count finite weights, a multiple of kBlockInputs, to blocks of kInt8 or kInt4.
 *
 * A block's largest weight is 127 (8 bits) or -8 (4 bits) times the scale, and the others are
 * rounded to nearest. Where another scale gives every weight of the block exactly, as it does for
 * weights that were quantised before, the block has that scale: nothing is rounded twice.
 */
void QuantizeBlocks(const float* weights, int64_t count, WeightType type, uint8_t* blocks);

/*!
 * \brief Packs (n, k / 32) blocks for this machine, as PackLinear packs floats.
 * \param packed PackedLinearBytes(n, k, type, kOwn) bytes, aligned to 64.
 */
void PackBlocks(const uint8_t* blocks, int64_t n, int64_t k, WeightType type, void* packed);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_QUANTIZED_BLOCKS_H_
