/*!
 * \file kernels/md5_lanes.h
 * \brief MD5 of sixteen streams at once. One stream is a chain of dependent steps; side by side
 * they fill a vector.
 */
#ifndef KVCTL_KERNELS_MD5_LANES_H_
#define KVCTL_KERNELS_MD5_LANES_H_

#include <cstddef>
#include <cstdint>

namespace kvctl {

constexpr int kMd5Lanes = 16;
constexpr size_t kMd5Block = 64;

/*! \brief Four words of each stream: word w of stream i is words[w][i]. */
struct Md5LaneStates {
  uint32_t words[4][kMd5Lanes];
};

/*! \brief Puts one stream at its beginning. */
void Md5Start(Md5LaneStates* states, int lane);

/*!
 * \brief Adds so many blocks of 64 bytes to each stream.
 * \param data Stream i begins at data + i * stride.
 */
void Md5AddBlocks(const unsigned char* data, size_t stride, size_t blocks, Md5LaneStates* states);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_MD5_LANES_H_
