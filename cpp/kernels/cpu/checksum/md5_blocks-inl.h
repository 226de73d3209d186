// MD5 (RFC 1321) of sixteen streams, for the instruction set that includes this.
#include <cstring>

#include "kernels/md5_lanes.h"

namespace kvctl {
namespace {

typedef uint32_t Words __attribute__((vector_size(4 * kMd5Lanes)));

// floor(2^32 |sin(i + 1)|)
constexpr uint32_t kSines[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391};
constexpr int kRotations[4][4] = {
    {7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};

// By pointers: a function that returns such a vector would have another ABI with each instruction
// set.
inline void Mix(int round, const Words& b, const Words& c, const Words& d, Words* mixed) {
  if (round == 0) *mixed = d ^ (b & (c ^ d));
  if (round == 1) *mixed = c ^ (d & (b ^ c));
  if (round == 2) *mixed = b ^ c ^ d;
  if (round == 3) *mixed = c ^ (b | ~d);
}

inline int WordOf(int round, int i) {
  constexpr int kFactors[4] = {1, 5, 3, 7}, kOffsets[4] = {0, 1, 5, 0};
  return (kFactors[round] * i + kOffsets[round]) % 16;
}

void AddBlocks(const unsigned char* data, size_t stride, size_t blocks, Md5LaneStates* states) {
  Words before[4];
  std::memcpy(before, states->words, sizeof(before));
  for (size_t block = 0; block < blocks; ++block, data += kMd5Block) {
    Words m[16];
    Transpose(data, stride, m);
    Words a = before[0], b = before[1], c = before[2], d = before[3];
#pragma GCC unroll 64
    for (int i = 0; i < 64; ++i) {
      const int round = i / 16, rotation = kRotations[round][i % 4];
      Words mixed;
      Mix(round, b, c, d, &mixed);
      const Words sum = a + mixed + m[WordOf(round, i)] + kSines[i];
      a = d;
      d = c;
      c = b;
      b += sum << rotation | sum >> (32 - rotation);
    }
    before[0] += a;
    before[1] += b;
    before[2] += c;
    before[3] += d;
  }
  std::memcpy(states->words, before, sizeof(before));
}

}  // namespace
}  // namespace kvctl
