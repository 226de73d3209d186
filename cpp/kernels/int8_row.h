/*!
 * \file kernels/int8_row.h
 * \brief The K or V of one token and head as 8-bit integers.
 *
 * Such a row is head_dim integers q in [-127, 127] with one float32 scale behind them: element d is
 * q[d] * scale, rounded to float32 once.
 */
#ifndef KVCTL_KERNELS_INT8_ROW_H_
#define KVCTL_KERNELS_INT8_ROW_H_

#include <cstdint>

#include "kvctl/dtype.h"

namespace kvctl {

/*! \brief The most elements of a head in a cache. */
constexpr int32_t kMostHeadElements = 256;
/*! \brief Bytes of the scale behind a row of 8-bit integers. */
constexpr int32_t kScaleBytes = 4;

/*! \brief Elements of a row of one head in memory: head_dim, and with kInt8 the bytes of the scale.
 */
constexpr int64_t RowElements(DType dtype, int64_t head_dim) {
  return head_dim + (dtype == DType::kInt8 ? kScaleBytes : 0);
}

/*!
 * \brief Quantises a row: the scale is the largest magnitude / 127, and each integer is the element
 * / scale, rounded to nearest even.
 *
 * An element changes by half of the scale at most. A row whose largest magnitude is below 127 times
 * the least normal float (1.5e-36) becomes zeros. A row with an infinite or NaN element becomes NaN
 * as a whole, since no scale holds its elements.
 *
 * \param target Of 4-byte alignment.
 */
void QuantizeRow(const float* source, int32_t head_dim, int8_t* target);

/*! \brief The elements that a quantised row stands for. */
void DequantizeRow(const int8_t* source, int32_t head_dim, float* target);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_INT8_ROW_H_
