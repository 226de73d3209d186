/*!
 * \file kernels/row_copy.h
 * \brief Copies of rows between two arrays.
 */
#ifndef KVCTL_KERNELS_ROW_COPY_H_
#define KVCTL_KERNELS_ROW_COPY_H_

#include <cstddef>
#include <cstdint>

namespace kvctl {

/*! \brief Copy row `source` of one array to row `target` of another. */
struct RowMove {
  int32_t source;
  int32_t target;
};

/*!
 * \brief Copies rows between two arrays that do not overlap; large copies run in parallel.
 * \param moves [num_moves] with distinct targets.
 * \param row_bytes Bytes of a row in either array.
 */
void CopyRowsCpu(const void* source, void* target, const RowMove* moves, int64_t num_moves,
                 size_t row_bytes);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_ROW_COPY_H_
