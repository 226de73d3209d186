// Products of quantised rows on AMX tiles. A block's products are integers, and the floats that
// follow are those of linear_quantized-inl.h in its order: the results are the same bits.
#include <algorithm>

#include "kernels/cpu/quantized/quantized_stream-inl.h"

namespace kvctl {
namespace {

/*! \brief Writes rows [row, row + kRows) of `panels` panels' outputs. */
template <int kRows, int kPieces, int kHalves, WeightType kType>
void RowsOfPanels(const QuantizedProduct& product, int64_t row, int64_t panel, int64_t panels) {
  using Rows = Stream<kRows, kPieces, kHalves, kType>;
  Configure(kRows * kPieces, Rows::kTileInputs);
  Buffers buffers;
  Rows(product, row, panel, row == 0, &buffers).Run(panels);
}

/*! \brief The rows of product.x behind m, up to a multiple of kTileRows, are read and not used. */
template <WeightType kType>
void TilePanels(const QuantizedProduct& product, int64_t begin, int64_t end) {
  // Panels that stay in the second-level cache while rows pass over them.
  constexpr int64_t kTogetherBytes = 262144;
  const int64_t fitting = kTogetherBytes / (product.blocks * PanelBlockBytes(kType));
  const int64_t together = product.m <= kTileRows ? end - begin : std::max<int64_t>(1, fitting);
  for (int64_t p = begin; p < end; p += together) {
    const int64_t panels = std::min(together, end - p);
    if (product.m <= kSpreadRows) {
      RowsOfPanels<8, 2, 2, kType>(product, 0, p, panels);
      continue;
    }
    int64_t row = 0;
    for (; product.m - row > 8; row += kTileRows) {
      RowsOfPanels<16, 1, 1, kType>(product, row, p, panels);
    }
    if (row < product.m) RowsOfPanels<8, 1, 2, kType>(product, row, p, panels);
  }
  _tile_release();
}

}  // namespace

const QuantizedPanels kQuantizedTiles[4] = {
    TilePanels<WeightType::kInt8>, TilePanels<WeightType::kInt4>,
    TilePanels<WeightType::kInt4Offset>, TilePanels<WeightType::kInt8Parts>};

}  // namespace kvctl
