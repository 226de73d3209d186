/*!
 * \file kernels/rope.h
 * \brief Rotary position embeddings (Su et al. 2021, arXiv:2104.09864, eq. 34) in Llama's layout.
 */
#ifndef KVCTL_KERNELS_ROPE_H_
#define KVCTL_KERNELS_ROPE_H_

#include <cstdint>
#include <vector>

#include "kernels/kv_copy.h"
#include "kvctl/dtype.h"

namespace kvctl {

/*! \brief How Llama 3.1 stretches low frequencies; factor 1: not at all. */
struct RopeLlama3Scaling {
  float factor = 1.f;
  float low_freq_factor = 1.f;
  float high_freq_factor = 4.f;
  float original_max_position = 8192.f;
};

/*! \brief Which rotation a model uses. */
struct RopeParams {
  float theta = 10000.f;
  float scale = 1.f;       //!< positions are multiplied by it
  int32_t rotary_dim = 0;  //!< the first rotary_dim of head_dim elements are rotated; even
  RopeLlama3Scaling llama3;
};

/*!
 * \brief cos and sin of every new token of a step: computed once per step, used by all layers.
 *
 * Element d of a head and element d + rotary_dim / 2 form a pair ("half" layout), rotated by the
 * angle position * theta ** (-2 d / rotary_dim). Angles are computed in float64.
 */
class RopeTable {
 public:
  /*! \throws kValue if rotary_dim is odd or not positive. */
  explicit RopeTable(const RopeParams& params);
  /*! \brief Fills the table for these rotary positions. Allocates only if it never held as many. */
  void Fill(const int32_t* positions, int32_t num_rows);

  const RopeParams& params() const { return params_; }
  int32_t num_rows() const { return num_rows_; }
  /*! \brief [rotary_dim / 2] cosines of a row, followed by as many sines. */
  const float* row(int32_t row) const { return values_.data() + int64_t(row) * params_.rotary_dim; }

 private:
  RopeParams params_;
  int32_t num_rows_ = 0;
  std::vector<double> frequencies_;  // [rotary_dim / 2], scale included
  std::vector<float> values_;        // [num_rows, rotary_dim]
};

/*!
 * \brief Rotates num_heads heads of every row; in and out may be the same memory.
 *
 * \param in Rows of [num_heads, head_dim], in_row_stride elements apart: for q, the start of the
 * fused tensor; for k, the same plus num_qo_heads * head_dim elements.
 * \param out Same dtype, rows out_row_stride elements apart.
 */
void RopeCpu(const RopeTable& table, DType dtype, int32_t num_heads, int32_t head_dim,
             const void* in, int64_t in_row_stride, void* out, int64_t out_row_stride);

/*!
 * \brief Cosines and sines of any frequencies, for models that rotate q and k themselves.
 * \param frequencies [half] angles of position 1.
 * \param factor Multiplies every cosine and sine (YaRN's and LongRoPE's attention factor).
 * \param out (rows, 2 * half): the cosines of a row, then its sines.
 */
void FillRopeTableCpu(const int32_t* positions, int32_t rows, const double* frequencies,
                      int32_t half, double factor, float* out);

/*! \brief What RotateHeadsCpu rotates: (rows, num_heads, head_dim) float32. */
struct RotatedHeads {
  int64_t rows;
  int64_t num_heads;
  int64_t rotated;  //!< the first so many heads of a row are rotated, the others copied
  int64_t head_dim;
};

/*!
 * \brief Rotates the first rotary_dim elements of the first heads of each row.
 * \param table (rows, rotary_dim), by FillRopeTableCpu.
 * \param in, out May be the same memory.
 */
void RotateHeadsCpu(const float* table, int32_t rotary_dim, const RotatedHeads& heads,
                    const float* in, float* out);

/*! \brief Rotates the keys of some slots of a layer's pages in place: the key in slots[i] by row i
 * of the table. A key cached at position p and rotated by q equals one cached at p + q, except for
 * one more rounding to the pages' dtype; keys of kInt8 get a new scale. */
void RopeSlotsCpu(const RopeTable& table, const PageShape& shape, void* pages,
                  const int32_t* slots);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_ROPE_H_
