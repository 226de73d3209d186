#include "kernels/cpu/tiles/linear_tiles.h"

#include <omp.h>

#include "kernels/convert.h"
#include "kernels/cpu/simd/scratch.h"
#include "kernels/team.h"

namespace kvctl {

void PackTiles(const float* weight, int64_t n, int64_t k, void* out) {
  const int64_t panels = (n + kTilePanelWidth - 1) / kTilePanelWidth, inputs = TileInputs(k);
#pragma omp parallel for schedule(static) if (UseTeam(true))
  for (int64_t p = 0; p < panels; ++p) {
    auto* panel = static_cast<BFloat16*>(out) + p * inputs * kTilePanelWidth;
    for (int64_t c = 0; c < kTilePanelWidth; ++c) {
      const int64_t column = p * kTilePanelWidth + c;
      for (int64_t i = 0; i < inputs; ++i) {
        // A line of a tile holds a pair of inputs for each of its columns.
        const int64_t tile = i / kTileStep * 2 + c / kTileSide;
        const int64_t pair = i % kTileStep / 2;
        const int64_t at = pair * kTileStep + c % kTileSide * 2 + i % 2;
        const bool there = column < n && i < k;
        FromFloat(there ? weight[column * k + i] : 0.0f, panel + tile * kTileSize + at);
      }
    }
  }
}

void LinearTiles(const float* x, int64_t m, const void* tiles, int64_t n, int64_t k,
                 const float* addend, float* out) {
  const int64_t pairs = (m + kTileSide - 1) / kTileSide * (TileInputs(k) / kTileStep);
  auto* split = static_cast<uint16_t*>(
      LinearScratch(static_cast<size_t>(pairs * 2 * kTileSize) * sizeof(uint16_t)));
  const TileProduct product{split, static_cast<const uint16_t*>(tiles), addend, out, m, n, k};
  const int64_t panels = (n + kTilePanelWidth - 1) / kTilePanelWidth;
  // Below this many products waking the threads costs more than the work.
#pragma omp parallel if (UseTeam(m * n * k > (1 << 16)))
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    SplitRowsToTiles(x, m, k, pairs * thread / threads, pairs * (thread + 1) / threads, split);
#pragma omp barrier
    MultiplyTiles(product, panels * thread / threads, panels * (thread + 1) / threads);
  }
}

}  // namespace kvctl
