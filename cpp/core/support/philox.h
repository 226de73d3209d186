/*!
 * \file core/support/philox.h
 * \brief Philox4x32-10: a counter-based random function.
 *
 * Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 */
#ifndef KVCTL_CORE_SUPPORT_PHILOX_H_
#define KVCTL_CORE_SUPPORT_PHILOX_H_

#include <array>
#include <cstdint>

#include "core/support/host_device.h"

namespace kvctl {

constexpr uint32_t kPhiloxMul0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMul1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;

/*! \brief Four random words for a counter of four words under a key of two. */
static KVCTL_HD inline std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                                          uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxMul0) * counter[0];
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxMul1) * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(p0)};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return counter;
}

}  // namespace kvctl

#endif  // KVCTL_CORE_SUPPORT_PHILOX_H_
