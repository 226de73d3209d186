/*!
 * \file kernels/layers/embed.h
 * \brief Gathers rows of a table by index: token embeddings, and the rows of a chunk that need
 * logits.
 */
#ifndef KVCTL_KERNELS_LAYERS_EMBED_H_
#define KVCTL_KERNELS_LAYERS_EMBED_H_

#include <cstdint>

namespace kvctl {

/*!
 * \brief out[i] = table[indices[i]].
 *
 * Throws kIndex, before writing, if an index is not a row of the table.
 * \param table (rows, cols) float32.
 * \param out (count, cols) float32.
 */
void TakeRows(const float* table, int64_t rows, int64_t cols, const int32_t* indices, int64_t count,
              float* out);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_LAYERS_EMBED_H_
