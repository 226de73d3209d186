/*!
 * \file kernels/quantized_blocks.h
 * \brief Weights of 8 and 4 bits: blocks of 32 inputs with one scale, as GGUF's Q8_0 and Q4_0.
 *
 * A block of 8 bits is a float16 scale and 32 signed bytes; a block of 4 bits a float16 scale and
 * 16 bytes, whose low halves are inputs 0 to 15 and whose high halves are inputs 16 to 31, plus 8.
 * A weight is scale * integer.
 */
#ifndef KVCTL_KERNELS_QUANTIZED_BLOCKS_H_
#define KVCTL_KERNELS_QUANTIZED_BLOCKS_H_

#include <cstdint>

#include "kernels/linear.h"

namespace kvctl {

constexpr int kBlockInputs = 32;  //!< inputs of a block

/*! \brief Bytes of a block of kInt8 or kInt4. */
constexpr int BlockBytes(WeightType type) { return type == WeightType::kInt8 ? 34 : 18; }

/*!
 * \brief Quantises count finite weights, a multiple of kBlockInputs, to blocks.
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
