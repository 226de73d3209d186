/*!
 * \file kernels/attention.h
 * \brief Masked attention of a step's new tokens over a paged cache.
 */
#ifndef KVCTL_KERNELS_ATTENTION_H_
#define KVCTL_KERNELS_ATTENTION_H_

#include <cstdint>
#include <memory>

#include "core/cache/step_plan.h"
#include "core/mask/mask_plan.h"
#include "kvctl/dtype.h"

namespace kvctl {

/*! \brief Scratch memory of AttentionCpu. Keep one per cache, and use it in one call at a time. */
class AttentionWorkspace {
 public:
  AttentionWorkspace();
  ~AttentionWorkspace();
  /*! \brief At least `size` floats, aligned to 64 bytes, contents unspecified. \throws bad_alloc */
  float* Reserve(int64_t size);

 private:
  struct Free {
    void operator()(float* data) const;
  };
  std::unique_ptr<float, Free> data_;
  int64_t size_ = 0;
};

/*! \brief Arguments of one call. Query tokens are the new tokens of the batch, as in StepPlan;
 * their K and V are already in the pages. */
struct AttentionArgs {
  /*! \brief [num_query_tokens] rows of [num_qo_heads, head_dim], q_row_stride elements apart: q can
   * be read in place out of a fused (num_query_tokens, num_qo_heads + 2 * num_kv_heads, head_dim)
   * tensor. */
  const void* q = nullptr;
  DType q_dtype = DType::kFloat32;
  int64_t q_row_stride = 0;
  int32_t num_qo_heads =
      0;  //!< a multiple of num_kv_heads: heads [g * h, g * (h + 1)) share KV head h

  /*! \brief [num_pages, 2, num_kv_heads, page_size, head_dim]: this layer's pages, K then V. */
  const void* pages = nullptr;
  DType kv_dtype = DType::kFloat32;
  int32_t num_kv_heads = 0;
  int32_t page_size = 0;
  int32_t head_dim = 0;  //!< a multiple of 8, at most 256

  const SequencePlan* sequences = nullptr;  //!< [num_sequences]
  int32_t num_sequences = 0;
  /*! \brief [num_sequences, num_kv_heads], or nullptr: pages that replace those of a sequence, per
   * KV head. */
  const int32_t* const* head_pages = nullptr;
  LayerMasks masks;  //!< MaskTable::layer(layer) of the same step

  /*! \brief [num_query_tokens] rows of [num_qo_heads, head_dim], out_row_stride elements apart. */
  void* out = nullptr;
  DType out_dtype = DType::kFloat32;
  int64_t out_row_stride = 0;

  float sm_scale = 0;  //!< scores = sm_scale * q.k; usually head_dim ** -0.5
  float soft_cap = 0;  //!< > 0: scores become soft_cap * tanh(scores / soft_cap)
  /*! \brief [num_qo_heads] or nullptr: adds slope * (position of key - position of query). */
  const float* alibi_slopes = nullptr;
  /*! \brief [num_qo_heads] or nullptr: one extra logit in each softmax, without a value. */
  const float* sinks = nullptr;
  /*! \brief [num_query_tokens, num_qo_heads] or nullptr: receives the natural log of the sum of
   * exponentials (-inf for a query that sees no key). */
  float* lse = nullptr;

  AttentionWorkspace* workspace = nullptr;
};

/*!
 * \brief out = softmax(scores over the visible keys) V, in float32, on OpenMP threads.
 *
 * A query's output is bitwise the same in any batch, with any number of threads, and whether the
 * token is computed alone, in a chain or on a tree path: sums run over logical positions in a fixed
 * order (mask_plan.h). Hidden keys enter no sum: their pages may hold anything, including NaN, or
 * not exist (-1). A query that sees no key yields zeros.
 *
 * \throws kValue for a head_dim, head count or page size that is not supported; bad_alloc.
 */
void AttentionCpu(const AttentionArgs& args);

/*! \brief What AttentionMassCpu sums. */
struct AttentionMass {
  /*! \brief [keys of all sequences, num_heads], one sequence after another; the sums are added to
   * it. */
  float* sums = nullptr;
  /*! \brief num_kv_heads (sums over the query heads of each) or num_qo_heads. */
  int32_t num_heads = 0;
  /*! \brief Only this many last new tokens of each sequence count; 0: all. */
  int32_t last_queries = 0;
};

/*!
 * \brief Sums the attention that each key got from the queries of a step: its softmax weights over
 * all queries.
 *
 * Tokens with little attention can be evicted from a cache (H2O, Zhang et al. 2023,
 * arXiv:2306.14048, sec. 4; SnapKV, Li et al. 2024, arXiv:2404.14469, sec. 4: the last queries of
 * the prompt only). The scores are computed again: for all queries it takes 0.4 to 0.85 of
 * AttentionCpu's time. The sums depend neither on the number of threads nor on the batch.
 *
 * \param args The arguments of a finished AttentionCpu, with its lse.
 * \throws kValue where lse is missing or num_heads is neither; and as AttentionCpu.
 */
void AttentionMassCpu(const AttentionArgs& args, const AttentionMass& mass);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_ATTENTION_H_
