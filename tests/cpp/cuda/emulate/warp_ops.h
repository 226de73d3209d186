/*!
 * \file warp_ops.h
 * \brief The PTX instructions of kernels/cuda/device/warp_ops.cuh, lane by lane in the layout of
 * the PTX ISA.
 */
#ifndef KVCTL_TESTS_CUDA_EMULATE_WARP_OPS_H_
#define KVCTL_TESTS_CUDA_EMULATE_WARP_OPS_H_

#include <cstdint>
#include <cstring>

#include "kernels/cuda/device/numbers.cuh"
#include "machine.h"

namespace emulate {

struct LoadLane {
  const void* row;
  uint32_t tiles[4];
};

/*! \brief Register t of lane l gets element (l / 4, 2 (l % 4)) of tile t and the next one, or those
 * of its transpose. Lane 8 t + r points to row r of tile t. */
template <bool kTransposed>
void LoadTilesOfWarp(void* const* lanes) {
  const auto element = [&](int tile, int row, int column) {
    uint16_t bits;
    const void* at = static_cast<const LoadLane*>(lanes[8 * tile + row])->row;
    if (reinterpret_cast<uintptr_t>(at) % 16 != 0) std::abort();
    std::memcpy(&bits, static_cast<const char*>(at) + 2 * column, 2);
    return uint32_t{bits};
  };
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int tile = 0; tile < 4; ++tile) {
      const int row = lane / 4, column = 2 * (lane % 4);
      static_cast<LoadLane*>(lanes[lane])->tiles[tile] =
          kTransposed ? element(tile, column, row) | element(tile, column + 1, row) << 16
                      : element(tile, row, column) | element(tile, row, column + 1) << 16;
    }
  }
}

template <bool kTransposed>
void LoadTilesFrom(uint32_t (&tiles)[4], const void* row) {
  LoadLane mine{row, {}};
  Collective(LoadTilesOfWarp<kTransposed>, &mine);
  std::memcpy(tiles, mine.tiles, sizeof(tiles));
}
inline void LoadTiles(uint32_t (&tiles)[4], const void* row) { LoadTilesFrom<false>(tiles, row); }
inline void LoadTilesTransposed(uint32_t (&tiles)[4], const void* row) {
  LoadTilesFrom<true>(tiles, row);
}

struct MultiplyLane {
  float* c;
  uint32_t a[4];
  uint32_t b[2];
};

/*!
 * \brief mma.m16n8k16: with g = lane / 4 and t = lane % 4, a0 holds (g, 2t), a1 (g + 8, 2t), a2 (g,
 * 2t + 8), a3 (g + 8, 2t + 8); b0 holds (2t, g), b1 (2t + 8, g); c0, c1 are (g, 2t), (g, 2t + 1),
 * c2, c3 the same of row g + 8.
 */
template <typename T>
void MultiplyWarp(void* const* lanes) {
  const auto half = [](uint32_t pair, int which) {
    return kvctl::cuda::ToFloat(T{static_cast<uint16_t>(which == 0 ? pair : pair >> 16)});
  };
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto* mine = static_cast<const MultiplyLane*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int which = 0; which < 2; ++which) {
      a[g][2 * t + which] = half(mine->a[0], which);
      a[g + 8][2 * t + which] = half(mine->a[1], which);
      a[g][2 * t + 8 + which] = half(mine->a[2], which);
      a[g + 8][2 * t + 8 + which] = half(mine->a[3], which);
      b[2 * t + which][g] = half(mine->b[0], which);
      b[2 * t + 8 + which][g] = half(mine->b[1], which);
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    float* c = static_cast<MultiplyLane*>(lanes[lane])->c;
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? g : g + 8, column = 2 * t + i % 2;
      float sum = c[i];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      c[i] = sum;
    }
  }
}

template <typename T>
void MultiplyAdd(T, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MultiplyLane mine{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  Collective(MultiplyWarp<T>, &mine);
}

}  // namespace emulate

#endif  // KVCTL_TESTS_CUDA_EMULATE_WARP_OPS_H_
