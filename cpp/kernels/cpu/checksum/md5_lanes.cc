#include "kernels/md5_lanes.h"

#include "kernels/cpu/checksum/md5_isa.h"
#include "kernels/isa.h"

namespace kvctl {

void Md5Start(Md5LaneStates* states, int lane) {
  constexpr uint32_t kFirst[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
  for (int word = 0; word < 4; ++word) states->words[word][lane] = kFirst[word];
}

void Md5AddBlocks(const unsigned char* data, size_t stride, size_t blocks, Md5LaneStates* states) {
  if (CpuIsa() == Isa::kAvx512) return Md5AddBlocksAvx512(data, stride, blocks, states);
  if (CpuIsa() == Isa::kAvx2) return Md5AddBlocksAvx2(data, stride, blocks, states);
  Md5AddBlocksBaseline(data, stride, blocks, states);
}

}  // namespace kvctl
