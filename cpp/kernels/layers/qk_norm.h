/*!
 * \file kernels/layers/qk_norm.h
 * \brief RMSNorm of queries and keys before attention.
 */
#ifndef KVCTL_KERNELS_LAYERS_QK_NORM_H_
#define KVCTL_KERNELS_LAYERS_QK_NORM_H_

#include <cstdint>

namespace kvctl {

/*! \brief Columns of a fused row that are normalised in groups of `group`. */
struct NormedColumns {
  int64_t cols;         //!< a multiple of group
  int64_t group;        //!< head_dim where each head is normalised alone, else cols
  const float* weight;  //!< (group,)
};

/*!
 * \brief Normalises the queries and then the keys of each row; the rest of it is copied.
 * \param qkv, out (rows, cols) float32; they may be the same memory.
 */
void QkNorm(const float* qkv, int64_t rows, int64_t cols, const NormedColumns& q,
            const NormedColumns& k, float epsilon, float* out);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_LAYERS_QK_NORM_H_
