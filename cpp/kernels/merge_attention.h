/*!
 * \file kernels/merge_attention.h
 * \brief Merges attention over two disjoint sets of keys.
 */
#ifndef KVCTL_KERNELS_MERGE_ATTENTION_H_
#define KVCTL_KERNELS_MERGE_ATTENTION_H_

#include <cstdint>

#include "kvctl/dtype.h"

namespace kvctl {

/*! \brief Attention of some queries over one set of keys. */
struct AttentionPart {
  void* out;  //!< [num_query_tokens, heads, head_dim], contiguous
  DType dtype;
  float* lse;  //!< [num_query_tokens, heads]: logarithm of the sum of exponentials of the scores
};

/*! \brief The base of an lse, for logarithms and exponentials. */
enum class LseBase { kE, kTwo };

/*!
 * \brief Merges `other` into `part`: with w = base ** lse, out = (w out + w' out') / (w + w') and
 * lse = log(w + w') (Dao et al. 2023, "Flash-Decoding"; Liu et al. 2023, arXiv:2310.01889, eq. 2).
 *
 * A part with an lse of -inf saw no key: the result is the other part, bit for bit.
 */
void MergeAttentionCpu(int64_t num_query_tokens, int64_t num_heads, int64_t head_dim, LseBase base,
                       const AttentionPart& part, const AttentionPart& other);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_MERGE_ATTENTION_H_
