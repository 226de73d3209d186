/*!
 * \file core/support/md5.h
 * \brief MD5 (RFC 1321): the checksum that MLC-LLM keeps of every shard of parameters.
 *
 * It finds bytes that were damaged on their way, and is no protection against a forger.
 */
#ifndef KVCTL_CORE_SUPPORT_MD5_H_
#define KVCTL_CORE_SUPPORT_MD5_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace kvctl {

/*! \brief The MD5 of bytes that come in pieces. */
class Md5 {
 public:
  /*! \brief Adds bytes behind those that came before. */
  void Update(const void* bytes, size_t size) {
    const auto* data = static_cast<const unsigned char*>(bytes);
    size_t held = total_ % kBlock;
    total_ += size;
    if (held > 0) {
      const size_t taken = size < kBlock - held ? size : kBlock - held;
      std::memcpy(&buffer_[held], data, taken);
      data += taken;
      size -= taken;
      if (held + taken < kBlock) return;
      AddBlock(buffer_.data());
    }
    for (; size >= kBlock; data += kBlock, size -= kBlock) AddBlock(data);
    std::memcpy(buffer_.data(), data, size);
  }

  /*! \brief Returns the digest of all bytes, 32 hexadecimal digits; nothing may be added later. */
  std::string Finish() {
    const uint64_t bits = total_ * 8;
    const unsigned char first = 0x80;
    Update(&first, 1);
    const std::array<unsigned char, kBlock> zeros{};
    const size_t held = total_ % kBlock;
    Update(zeros.data(), (held <= kBlock - 8 ? kBlock : 2 * kBlock) - 8 - held);
    std::array<unsigned char, 8> length;
    for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(bits >> (8 * i));
    Update(length.data(), length.size());
    std::string digest;
    for (uint32_t word : state_) {
      for (int shift = 0; shift < 32; shift += 8) {
        digest += "0123456789abcdef"[word >> (shift + 4) & 15];
        digest += "0123456789abcdef"[word >> shift & 15];
      }
    }
    return digest;
  }

 private:
  static constexpr size_t kBlock = 64;
  //! floor(2^32 |sin(i + 1)|)
  static constexpr std::array<uint32_t, 64> kSines = {
      0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613,
      0xfd469501, 0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193,
      0xa679438e, 0x49b40821, 0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d,
      0x02441453, 0xd8a1e681, 0xe7d3fbc8, 0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed,
      0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a, 0xfffa3942, 0x8771f681, 0x6d9d6122,
      0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70, 0x289b7ec6, 0xeaa127fa,
      0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665, 0xf4292244,
      0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
      0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb,
      0xeb86d391,
  };

  static uint32_t Load(const unsigned char* bytes) {
    return uint32_t{bytes[0]} | uint32_t{bytes[1]} << 8 | uint32_t{bytes[2]} << 16 |
           uint32_t{bytes[3]} << 24;
  }

  /*! \brief One of the 64 steps: a becomes b plus the rotated sum. */
  static void Step(uint32_t* a, uint32_t b, uint32_t mixed, uint32_t word, int i, int rotation) {
    const uint32_t sum = *a + mixed + word + kSines[i];
    *a = b + (sum << rotation | sum >> (32 - rotation));
  }

  void AddBlock(const unsigned char* block) {
    std::array<uint32_t, 16> m;
    for (int i = 0; i < 16; ++i) m[i] = Load(block + 4 * i);
    auto [a, b, c, d] = state_;
    // Four steps at a time: afterwards the four words have their names again.
    for (int i = 0; i < 16; i += 4) {
      Step(&a, b, d ^ (b & (c ^ d)), m[i], i, 7);
      Step(&d, a, c ^ (a & (b ^ c)), m[i + 1], i + 1, 12);
      Step(&c, d, b ^ (d & (a ^ b)), m[i + 2], i + 2, 17);
      Step(&b, c, a ^ (c & (d ^ a)), m[i + 3], i + 3, 22);
    }
    for (int i = 16; i < 32; i += 4) {
      Step(&a, b, c ^ (d & (b ^ c)), m[(5 * i + 1) % 16], i, 5);
      Step(&d, a, b ^ (c & (a ^ b)), m[(5 * i + 6) % 16], i + 1, 9);
      Step(&c, d, a ^ (b & (d ^ a)), m[(5 * i + 11) % 16], i + 2, 14);
      Step(&b, c, d ^ (a & (c ^ d)), m[(5 * i + 16) % 16], i + 3, 20);
    }
    for (int i = 32; i < 48; i += 4) {
      Step(&a, b, b ^ c ^ d, m[(3 * i + 5) % 16], i, 4);
      Step(&d, a, a ^ b ^ c, m[(3 * i + 8) % 16], i + 1, 11);
      Step(&c, d, d ^ a ^ b, m[(3 * i + 11) % 16], i + 2, 16);
      Step(&b, c, c ^ d ^ a, m[(3 * i + 14) % 16], i + 3, 23);
    }
    for (int i = 48; i < 64; i += 4) {
      Step(&a, b, c ^ (b | ~d), m[(7 * i) % 16], i, 6);
      Step(&d, a, b ^ (a | ~c), m[(7 * i + 7) % 16], i + 1, 10);
      Step(&c, d, a ^ (d | ~b), m[(7 * i + 14) % 16], i + 2, 15);
      Step(&b, c, d ^ (c | ~a), m[(7 * i + 21) % 16], i + 3, 21);
    }
    state_[0] += a;
    state_[1] += b;
    state_[2] += c;
    state_[3] += d;
  }

  std::array<uint32_t, 4> state_ = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
  std::array<unsigned char, kBlock> buffer_{};
  uint64_t total_ = 0;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_SUPPORT_MD5_H_
