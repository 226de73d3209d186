/*!
 * \file kernels/cpu/simd/tile_config-inl.h
 * \brief The configuration of AMX tiles, for files that are compiled for them.
 */
#ifndef KVCTL_KERNELS_CPU_SIMD_TILE_CONFIG_INL_H_
#define KVCTL_KERNELS_CPU_SIMD_TILE_CONFIG_INL_H_

#include <immintrin.h>

#include <cstdint>

namespace kvctl {
namespace {

/*! \brief Says that an instruction is about to read memory: GCC does not know that those of tiles
 * do, and may leave out or put off the stores before them. */
inline void Written(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

/*! \brief What the instruction that configures the tiles reads. */
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t line_bytes[16] = {};
  uint8_t rows[16] = {};

  void Set(int tile, int num_rows, int bytes) {
    rows[tile] = static_cast<uint8_t>(num_rows);
    line_bytes[tile] = static_cast<uint16_t>(bytes);
  }
  void Load() const {
    Written(this);
    _tile_loadconfig(this);
  }
};
static_assert(sizeof(TileConfig) == 64, "the processor's layout");

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SIMD_TILE_CONFIG_INL_H_
