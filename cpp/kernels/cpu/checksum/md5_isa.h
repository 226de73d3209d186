/*!
 * \file kernels/cpu/checksum/md5_isa.h
 * \brief Md5AddBlocks for each instruction set.
 */
#ifndef KVCTL_KERNELS_CPU_CHECKSUM_MD5_ISA_H_
#define KVCTL_KERNELS_CPU_CHECKSUM_MD5_ISA_H_

#include "kernels/md5_lanes.h"

namespace kvctl {

void Md5AddBlocksBaseline(const unsigned char* data, size_t stride, size_t blocks,
                          Md5LaneStates* states);
void Md5AddBlocksAvx2(const unsigned char* data, size_t stride, size_t blocks,
                      Md5LaneStates* states);
void Md5AddBlocksAvx512(const unsigned char* data, size_t stride, size_t blocks,
                        Md5LaneStates* states);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_CHECKSUM_MD5_ISA_H_
