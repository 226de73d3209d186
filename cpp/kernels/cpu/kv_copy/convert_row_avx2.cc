#include "kernels/cpu/kv_copy/convert_row_avx2.h"

#include <immintrin.h>

namespace kvctl {

int64_t ConvertBlocksAvx2(const void* source, DType source_dtype, void* target, DType target_dtype,
                          int64_t count) {
  int64_t i = 0;
  if (source_dtype == DType::kFloat32 && target_dtype == DType::kFloat16) {
    for (; i + 8 <= count; i += 8) {
      const __m256 wide = _mm256_loadu_ps(static_cast<const float*>(source) + i);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(target) + i),
                       _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT));
    }
  } else if (source_dtype == DType::kFloat16 && target_dtype == DType::kFloat32) {
    for (; i + 8 <= count; i += 8) {
      const __m128i half = _mm_loadu_si128(
          reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(source) + i));
      _mm256_storeu_ps(static_cast<float*>(target) + i, _mm256_cvtph_ps(half));
    }
  }
  return i;
}

}  // namespace kvctl
