/*!
 * \file kernels/kv_copy.h
 * \brief Copies of K and V into and out of pages.
 *
 * The pages of a layer are one array (num_pages, 2, num_kv_heads, page_size, head_dim): K, then V.
 * A slot is page * page_size + offset. Pages may also hold K alone, (num_pages, 1, ...); V is then
 * ignored below. Pages of kInt8 have rows of RowElements, (..., page_size, head_dim + 4): see
 * kernels/int8_row.h. Pages of kFloat8 are for CUDA devices alone.
 */
#ifndef KVCTL_KERNELS_KV_COPY_H_
#define KVCTL_KERNELS_KV_COPY_H_

#include <cstdint>

#include "kernels/int8_row.h"
#include "kvctl/dtype.h"

namespace kvctl {

/*! \brief The shape of a page of one layer. */
struct PageShape {
  int32_t num_kv_heads;
  int32_t page_size;
  int32_t head_dim;
  DType dtype;
  int32_t num_parts = 2;  //!< 2: K and V, 1: K alone

  /*! \brief Elements of one head in a slot. */
  int64_t row_elements() const { return RowElements(dtype, head_dim); }
  /*! \brief Elements of one page: K and V of all heads. */
  int64_t num_elements() const {
    return int64_t{num_parts} * num_kv_heads * page_size * row_elements();
  }
  int64_t num_bytes() const { return num_elements() * DTypeSize(dtype); }
  /*! \brief Element offset of K (part 0) or V (part 1) of one head in a slot. */
  int64_t Offset(int32_t slot, int32_t part, int32_t head) const {
    const int64_t page = slot / page_size;
    return (((page * num_parts + part) * num_kv_heads + head) * page_size + slot % page_size) *
           row_elements();
  }
};

/*! \brief Rows of K or V outside the pages: row r, head h starts at data + (r * row_stride + h *
 * RowElements(dtype, head_dim)). */
struct KVRows {
  void* data;
  DType dtype;
  int64_t row_stride;  //!< elements from one row to the next
};

/*! \brief The type in which kernels on a device take q: the pages', or kFloat16 for kFloat8, which
 * holds all of their elements. */
constexpr DType QueryDType(DType pages) {
  return pages == DType::kFloat8 ? DType::kFloat16 : pages;
}

/*! \brief Writes rows of K and V into their slots, converting to the pages' dtype (round to nearest
 * even). Rows without data are skipped. Rows of kInt8 need pages of kInt8. */
void WriteSlotsCpu(const PageShape& shape, void* pages, const int32_t* slots, int64_t num_rows,
                   const KVRows& k, const KVRows& v);

/*! \brief Reads slots into rows of K and V, converting from the pages' dtype. Rows without data are
 * skipped. */
void ReadSlotsCpu(const PageShape& shape, const void* pages, const int32_t* slots, int64_t num_rows,
                  const KVRows& k, const KVRows& v);

/*! \brief Copies one page onto another. */
void CopyPageCpu(const PageShape& shape, void* pages, int32_t source, int32_t target);

/*! \brief Copies the K and V of one slot to another. */
void CopySlotCpu(const PageShape& shape, void* pages, int32_t source, int32_t target);

/*! \brief Fills a slot with what reads as NaN. */
void PoisonSlotCpu(const PageShape& shape, void* pages, int32_t slot);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_KV_COPY_H_
