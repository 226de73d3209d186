#include "kernels/cpu/quantized/linear_quantized.h"

#include <omp.h>

#include <cstdlib>
#include <cstring>

#include "kernels/cpu/simd/scratch.h"
#include "kernels/team.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

/*! \brief Kernels of this machine: AVX-512 without products of bytes (VNNI) uses those of AVX2. */
const QuantizedKernels& Kernels() {
  if (CpuIsa() >= Isa::kAvx512 && __builtin_cpu_supports("avx512vnni")) {
    return kQuantizedKernelsVnni;
  }
  if (CpuHasAvxVnni()) return kQuantizedKernelsAvxVnni;
  return CpuIsa() >= Isa::kAvx2 ? kQuantizedKernelsAvx2 : kQuantizedKernelsBaseline;
}

// From how many rows tiles take less time. Behind kSpreadRows they multiply sixteen rows, however
// many of these there are, and up to so many rows products of bytes take less again: int8, int4,
// int4 with offset, int8 parts. Measured by benchmarks/python/bench_linear.py under several
// KVCTL_TILE_ROWS.
constexpr int64_t kTileRows = 5;
constexpr int64_t kTooFewForSixteen[4] = {12, 12, 12, 15};

int Index(WeightType type) { return static_cast<int>(type) - static_cast<int>(WeightType::kInt8); }

/*! \brief The rows that KVCTL_TILE_ROWS names, or 0. */
int64_t AskedTileRows() {
  const char* text = std::getenv("KVCTL_TILE_ROWS");
  if (text == nullptr || *text == '\0') return 0;
  char* end;
  const long long rows = std::strtoll(text, &end, 10);
  if (*end == '\0' && rows > 0) return rows;
  Throw(ErrorKind::kValue,
        "the environment variable KVCTL_TILE_ROWS must be a positive number of rows, not '", text,
        "'");
}

/*! \brief Whether tiles multiply m rows of so many pieces, blocks or parts of them. */
bool TakesTiles(WeightType type, int64_t m, int64_t pieces) {
  if (!CpuHasTiles() || m < QuantizedTileRows()) return false;
  if (m <= kSpreadRows) return pieces % 2 == 0;
  return m > kTooFewForSixteen[Index(type)] || QuantizedTileRows() != kTileRows;
}

constexpr int64_t Panels(int64_t n) { return (n + kQuantizedWidth - 1) / kQuantizedWidth; }

}  // namespace

int64_t QuantizedTileRows() {
  static const int64_t asked = AskedTileRows();
  return asked > 0 ? asked : kTileRows;
}

std::vector<LinearKernel> QuantizedKernelNames() {
  const QuantizedKernels* own = &Kernels();
  const char* name = own == &kQuantizedKernelsVnni      ? "avx512 vnni"
                     : own == &kQuantizedKernelsAvxVnni ? "avx2 vnni"
                     : own == &kQuantizedKernelsAvx2    ? "avx2"
                                                        : "baseline";
  std::vector<LinearKernel> kernels = {{name, 1}};
  if (!CpuHasTiles()) return kernels;
  const int64_t rows = QuantizedTileRows();
  if (rows == 1) kernels.clear();
  kernels.push_back({"AMX tiles", rows});
  return kernels;
}

void PackQuantizedPanels(const uint8_t* blocks, int64_t n, int64_t k, WeightType type, void* out) {
  const bool bytes = HasBytes(type);
  const int64_t count = k / kBlockInputs, panel_bytes = PanelBlockBytes(type);
  const int64_t head = BlockHeadBytes(type), integers = BlockBytes(type) - head;
  const uint8_t zero[40] = {};                 // a column behind the last one
  const uint8_t centre = bytes ? 0x80 : 0x00;  // makes signed bytes unsigned
#pragma omp parallel for schedule(static) if (UseTeam(true))
  for (int64_t p = 0; p < Panels(n); ++p) {
    for (int64_t b = 0; b < count; ++b) {
      uint8_t* panel = static_cast<uint8_t*>(out) + p * count * panel_bytes;
      uint8_t* target = panel + PanelIntegersAt(type, b);
      uint8_t* behind = panel + PanelHeadAt(type, b, count);
      for (int64_t c = 0; c < kQuantizedWidth; ++c) {
        const int64_t column = p * kQuantizedWidth + c;
        const uint8_t* block = column < n ? blocks + (column * count + b) * BlockBytes(type) : zero;
        for (int64_t i = 0; i < integers; ++i) {
          target[(i / 4 * kQuantizedWidth + c) * 4 + i % 4] = block[head + i] ^ centre;
        }
        // The float16 of all columns, then the bytes.
        const int64_t halves = HasOffset(type) ? 2 : 1;
        for (int64_t i = 0; i < halves; ++i) {
          std::memcpy(behind + 2 * (i * kQuantizedWidth + c), block + 2 * i, 2);
        }
        for (int64_t i = 2 * halves; i < head; ++i) behind[i * kQuantizedWidth + c] = block[i];
      }
    }
  }
}

namespace {

/*!
 * \brief Writes a row's quantised inputs into tiles. A tile has two parts of the inputs, blocks or
 * halves of one, of kSpreadRows rows: lines of the first part and zeros, then lines of zeros and
 * the second part.
 */
void SpreadRow(const QuantizedRows& rows, int64_t row, int64_t blocks, int64_t parts) {
  const int64_t inputs = kBlockInputs / parts;
  for (int64_t i = 0; i < blocks * parts; ++i) {
    const int64_t second = i % 2;
    int8_t* line = rows.spread + ((i / 2 * 2 + second) * kSpreadRows + row) * kSpreadBytes;
    std::memset(line, 0, kSpreadBytes);
    std::memcpy(line + second * inputs,
                rows.values + rows.At(row, i / parts, blocks) * kBlockInputs + i % parts * inputs,
                static_cast<size_t>(inputs));
  }
}

/*! \brief Clears what is multiplied with a row's products: numbers that are next to zero, as memory
 * may have them, take the processor a hundred times as long as others. */
void ClearScales(const QuantizedRows& rows, int64_t row, int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t place = rows.At(row, b, blocks);
    rows.scales[place] = 0.0f;
    rows.sums[place] = 0.0f;
  }
}

}  // namespace

void LinearQuantized(const float* x, int64_t m, const void* panels, int64_t n, int64_t k,
                     WeightType type, const float* addend, float* out) {
  const int64_t blocks = k / kBlockInputs, parts = type == WeightType::kInt8Parts ? 2 : 1;
  const bool is_spread = m <= kSpreadRows, tiles = TakesTiles(type, m, blocks * parts);
  const int64_t together = tiles ? kTileRowsTogether : kRowsTogether;
  const int64_t padded = (m + together - 1) / together * together, places = padded * blocks;
  // Tiles take rows behind the last one along.
  const int64_t taken = tiles ? (m + kSpreadRows - 1) / kSpreadRows * kSpreadRows : m;
  const int64_t spread_bytes = tiles && is_spread ? blocks * parts * kSpreadRows * kSpreadBytes : 0;
  auto* memory = static_cast<char*>(
      LinearScratch(static_cast<size_t>(padded * k + 24 * places + spread_bytes)));
  auto* words = memory + padded * k;
  const QuantizedRows rows{reinterpret_cast<int8_t*>(memory),
                           reinterpret_cast<float*>(words + 16 * places),
                           reinterpret_cast<BlockOffsets*>(words),
                           reinterpret_cast<float*>(words + 20 * places),
                           together,
                           reinterpret_cast<int8_t*>(words + 24 * places)};
  const QuantizedKernels& kernels = Kernels();
  const QuantizedProduct product{rows,  static_cast<const uint8_t*>(panels), addend, out, m, n,
                                 blocks};
  const QuantizedPanels run = tiles ? kQuantizedTiles[Index(type)] : kernels.panels[Index(type)];
  // Below this many products waking the threads costs more than the work.
#pragma omp parallel if (UseTeam(m * n * k > (1 << 17)))
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < taken; ++row) {
      if (row >= m) {
        ClearScales(rows, row, blocks);
        continue;
      }
      kernels.quantize_row(x, row, blocks, rows);
      if (spread_bytes > 0) SpreadRow(rows, row, blocks, parts);
    }
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    run(product, Panels(n) * thread / threads, Panels(n) * (thread + 1) / threads);
  }
}

}  // namespace kvctl
