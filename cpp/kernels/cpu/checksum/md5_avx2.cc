#include <immintrin.h>

#include "kernels/cpu/checksum/md5_isa.h"

namespace kvctl {
namespace {

/*! \brief Reads a block of each stream: word i of all streams becomes m[i]. */
template <typename Words>
void Transpose(const unsigned char* data, size_t stride, Words* m) {
  const auto step = static_cast<int>(stride);
  const __m256i lanes =
      _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(step));
  for (int word = 0; word < 16; ++word) {
    __m256i halves[2];
    for (int half = 0; half < 2; ++half) {
      halves[half] = _mm256_i32gather_epi32(
          reinterpret_cast<const int*>(data + 8 * half * stride + 4 * word), lanes, 1);
    }
    __builtin_memcpy(&m[word], halves, sizeof(halves));
  }
}

}  // namespace
}  // namespace kvctl

#include "kernels/cpu/checksum/md5_blocks-inl.h"

namespace kvctl {

void Md5AddBlocksAvx2(const unsigned char* data, size_t stride, size_t blocks,
                      Md5LaneStates* states) {
  AddBlocks(data, stride, blocks, states);
}

}  // namespace kvctl
