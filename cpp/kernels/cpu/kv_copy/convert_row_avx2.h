/*!
 * \file kernels/cpu/kv_copy/convert_row_avx2.h
 * \brief Float to half and back, eight at a time.
 */
#ifndef KVCTL_KERNELS_CPU_KV_COPY_CONVERT_ROW_AVX2_H_
#define KVCTL_KERNELS_CPU_KV_COPY_CONVERT_ROW_AVX2_H_

#include <cstdint>

#include "kvctl/dtype.h"

namespace kvctl {

/*!
 * \brief Converts as many elements between float32 and float16 as fill complete vectors.
 * \return How many; 0 for other pairs of dtypes.
 */
int64_t ConvertBlocksAvx2(const void* source, DType source_dtype, void* target, DType target_dtype,
                          int64_t count);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_KV_COPY_CONVERT_ROW_AVX2_H_
