#include "kernels/cpu/checksum/md5_isa.h"

namespace kvctl {
namespace {

/*! \brief Reads a block of each stream: word i of all streams becomes m[i]. */
template <typename Words>
void Transpose(const unsigned char* data, size_t stride, Words* m) {
  for (int lane = 0; lane < kMd5Lanes; ++lane) {
    uint32_t block[16];
    __builtin_memcpy(block, data + lane * stride, sizeof(block));
    for (int word = 0; word < 16; ++word) m[word][lane] = block[word];
  }
}

}  // namespace
}  // namespace kvctl

#include "kernels/cpu/checksum/md5_blocks-inl.h"

namespace kvctl {

void Md5AddBlocksBaseline(const unsigned char* data, size_t stride, size_t blocks,
                          Md5LaneStates* states) {
  AddBlocks(data, stride, blocks, states);
}

}  // namespace kvctl
