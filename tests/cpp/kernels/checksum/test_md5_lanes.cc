// MD5 of sixteen streams at once, against MD5 of each.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "core/support/md5.h"
#include "kernels/md5_lanes.h"

namespace {

using kvctl::kMd5Lanes;
using kvctl::Md5LaneStates;

std::string Digest(const Md5LaneStates& states, int lane) {
  std::string digest;
  for (const auto& words : states.words) {
    for (int shift = 0; shift < 32; shift += 8) {
      digest += "0123456789abcdef"[words[lane] >> (shift + 4) & 15];
      digest += "0123456789abcdef"[words[lane] >> shift & 15];
    }
  }
  return digest;
}

}  // namespace

TEST(SixteenStreamsHaveTheMd5OfEach) {
  constexpr size_t kStride = 448, kBlocks = 7;
  std::vector<unsigned char> data(kStride * kMd5Lanes);
  uint32_t random = 7;
  for (unsigned char& byte : data) byte = static_cast<unsigned char>(random = random * 69069 + 1);
  Md5LaneStates states;
  for (int lane = 0; lane < kMd5Lanes; ++lane) {
    kvctl::Md5Start(&states, lane);
    // The last block is the padding of six blocks of data.
    unsigned char* last = &data[lane * kStride + 384];
    std::fill(last, last + 64, 0);
    last[0] = 0x80;
    last[56] = 0x00;
    last[57] = 0x0c;  // 384 bytes are 3072 bits
  }
  kvctl::Md5AddBlocks(data.data(), kStride, 2, &states);
  kvctl::Md5AddBlocks(data.data() + 128, kStride, kBlocks - 2, &states);
  for (int lane = 0; lane < kMd5Lanes; ++lane) {
    kvctl::Md5 one;
    one.Update(&data[lane * kStride], 384);
    EXPECT_EQ(Digest(states, lane), one.Finish());
  }
}
