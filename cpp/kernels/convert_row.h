/*!
 * \file kernels/convert_row.h
 * \brief Rows of floats from one dtype to another.
 */
#ifndef KVCTL_KERNELS_CONVERT_ROW_H_
#define KVCTL_KERNELS_CONVERT_ROW_H_

#include <cstdint>

#include "kvctl/dtype.h"

namespace kvctl {

/*! \brief Converts `count` elements, rounding to nearest even; equal dtypes are copied bit for bit.
 */
void ConvertRow(const void* source, DType source_dtype, void* target, DType target_dtype,
                int64_t count);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CONVERT_ROW_H_
