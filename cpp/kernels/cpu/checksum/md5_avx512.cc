#include <immintrin.h>

#include "kernels/cpu/checksum/md5_isa.h"

namespace kvctl {
namespace {

/*! \brief Reads a block of each stream: word i of all streams becomes m[i]. */
template <typename Words>
void Transpose(const unsigned char* data, size_t stride, Words* m) {
  const __m512i lanes =
      _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(static_cast<int>(stride)));
  for (int word = 0; word < 16; ++word) {
    const __m512i values = _mm512_i32gather_epi32(lanes, data + 4 * word, 1);
    __builtin_memcpy(&m[word], &values, sizeof(values));
  }
}

}  // namespace
}  // namespace kvctl

#include "kernels/cpu/checksum/md5_blocks-inl.h"

namespace kvctl {

void Md5AddBlocksAvx512(const unsigned char* data, size_t stride, size_t blocks,
                        Md5LaneStates* states) {
  AddBlocks(data, stride, blocks, states);
}

}  // namespace kvctl
