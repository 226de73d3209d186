/*!
 * \file kernels/cpu/tiles/linear_tiles.h
 * \brief Linear layers of bfloat16 on AMX tiles.
 *
 * A tile holds 16 rows of 32 bfloat16 inputs, or the weights of 16 output columns for 32 inputs. A
 * panel is 32 columns wide; for each 32 inputs it holds two tiles of weights, side by side. An
 * input is the sum of two bfloat16, itself rounded and what rounding left, which keeps 16 bits of
 * it. An instruction adds the products of pairs of inputs to a float32 sum, pair after pair, for
 * each row of the tile by itself. A row's sum is therefore the same bits whatever rows are beside
 * it. Weights are read once for all rows, and even one row's products take less time than reading
 * its weights from memory: one row runs on the same tiles as many.
 */
#ifndef KVCTL_KERNELS_CPU_TILES_LINEAR_TILES_H_
#define KVCTL_KERNELS_CPU_TILES_LINEAR_TILES_H_

#include <cstdint>

namespace kvctl {

constexpr int kTileSide = 16;                   //!< rows, or columns, of a tile
constexpr int kTileStep = 32;                   //!< inputs of a tile
constexpr int kTileSize = 16 * 32;              //!< numbers of a tile, 1 KiB
constexpr int kTilePanelWidth = 2 * kTileSide;  //!< output columns of a panel

/*! \brief k rounded up to whole tiles; the inputs behind k are zero. */
constexpr int64_t TileInputs(int64_t k) { return (k + kTileStep - 1) / kTileStep * kTileStep; }

/*! \brief One product over tiles. */
struct TileProduct {
  const uint16_t* x;      //!< blocks of 16 rows, each TileInputs(k) / 32 pairs of tiles
  const uint16_t* tiles;  //!< panels of TileInputs(k) / 32 pairs of tiles
  const float* addend;    //!< (m, n) or nullptr
  float* out;             //!< (m, n)
  int64_t m;
  int64_t n;
  int64_t k;
};

/*! \brief Packs a row-major float32 (n, k) weight into panels of tiles. */
void PackTiles(const float* weight, int64_t n, int64_t k, void* out);

/*! \brief out = x Wᵀ + addend; see Linear. */
void LinearTiles(const float* x, int64_t m, const void* tiles, int64_t n, int64_t k,
                 const float* addend, float* out);

// What linear_tiles_amx.cc does; only where CpuHasTiles().

/*! \brief Splits x (m, k) into pairs of tiles [begin, end) of all those of its blocks of 16 rows.
 */
void SplitRowsToTiles(const float* x, int64_t m, int64_t k, int64_t begin, int64_t end,
                      uint16_t* out);

/*! \brief Computes the output columns of panels [begin, end). */
void MultiplyTiles(const TileProduct& product, int64_t begin, int64_t end);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_TILES_LINEAR_TILES_H_
