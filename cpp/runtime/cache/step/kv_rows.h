/*!
 * \file runtime/cache/step/kv_rows.h
 * \brief Rows of q, K and V as kernels take them, out of tensors.
 */
#ifndef KVCTL_RUNTIME_CACHE_STEP_KV_ROWS_H_
#define KVCTL_RUNTIME_CACHE_STEP_KV_ROWS_H_

#include <tvm/runtime/tensor.h>

#include <cstdint>

#include "kernels/kv_copy.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

/*! \brief The new tokens' rows of one layer as they are given; q, K and V have one type. */
struct GivenRows {
  KVRows q, k, v;
  DLDataType dtype;
  /*! \brief (at least rows, num_qo_heads + 2 * num_kv_heads, head_dim), if q, K and V are parts of
   * one tensor. A model library's rotation takes nothing else. */
  const tvm::runtime::Tensor* fused;
};

/*! \brief The new tokens' rows of one layer, rotated where the cache rotates. */
struct QKVRows {
  KVRows q, k, v;
  KVRows plain_k;     //!< K before the rotation
  KVRows q_at_sinks;  //!< q rotated for sinks that a window renumbers; no data where there are none
};

/*!
 * \brief The rows of one part of a (parts, rows, num_kv_heads, head_dim) tensor, or of one with the
 * rows of int8 pages, (parts, rows, num_kv_heads, RowElements).
 * \param part A layer, or 0 for K and 1 for V.
 */
inline KVRows PartRows(const tvm::runtime::Tensor& kv, int64_t part) {
  const DType dtype = PageDType(kv.DataType());
  const int64_t row = kv->shape[2] * kv->shape[3];
  char* data = static_cast<char*>(DataPointer(kv.operator->()));
  return {data + part * kv->shape[1] * row * DTypeSize(dtype), dtype, row};
}

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_STEP_KV_ROWS_H_
