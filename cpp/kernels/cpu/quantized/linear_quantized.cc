#include "kernels/cpu/quantized/linear_quantized.h"

#include <omp.h>

#include <cstring>

#include "kernels/cpu/simd/scratch.h"
#include "kernels/team.h"

namespace kvctl {
namespace {

/*! \brief Kernels of this machine: AVX-512 without products of bytes (VNNI) uses those of AVX2. */
const QuantizedKernels& Kernels() {
  if (CpuIsa() >= Isa::kAvx512 && __builtin_cpu_supports("avx512vnni")) {
    return kQuantizedKernelsVnni;
  }
  return CpuIsa() >= Isa::kAvx2 ? kQuantizedKernelsAvx2 : kQuantizedKernelsBaseline;
}

constexpr int64_t Panels(int64_t n) { return (n + kQuantizedWidth - 1) / kQuantizedWidth; }

}  // namespace

void PackQuantizedPanels(const uint8_t* blocks, int64_t n, int64_t k, WeightType type, void* out) {
  const bool bytes = type == WeightType::kInt8;
  const int64_t count = k / kBlockInputs, panel_bytes = PanelBlockBytes(type);
  const int quads = bytes ? 8 : 4;             // lines of four bytes of each column
  const uint8_t zero[34] = {};                 // a column behind the last one
  const uint8_t centre = bytes ? 0x80 : 0x00;  // makes signed bytes unsigned
#pragma omp parallel for schedule(static) if (UseTeam(true))
  for (int64_t p = 0; p < Panels(n); ++p) {
    for (int64_t b = 0; b < count; ++b) {
      uint8_t* target = static_cast<uint8_t*>(out) + (p * count + b) * panel_bytes;
      for (int64_t c = 0; c < kQuantizedWidth; ++c) {
        const int64_t column = p * kQuantizedWidth + c;
        const uint8_t* block = column < n ? blocks + (column * count + b) * BlockBytes(type) : zero;
        for (int i = 0; i < quads * 4; ++i) {
          target[(i / 4 * kQuantizedWidth + c) * 4 + i % 4] = block[2 + i] ^ centre;
        }
        std::memcpy(target + quads * 4 * kQuantizedWidth + 2 * c, block, 2);
      }
    }
  }
}

void LinearQuantized(const float* x, int64_t m, const void* panels, int64_t n, int64_t k,
                     WeightType type, const float* addend, float* out) {
  const int64_t blocks = k / kBlockInputs;
  auto* memory = static_cast<char*>(LinearScratch(static_cast<size_t>(m * (k + 8 * blocks))));
  const QuantizedRows rows{reinterpret_cast<int8_t*>(memory),
                           reinterpret_cast<float*>(memory + m * k),
                           reinterpret_cast<int32_t*>(memory + m * (k + 4 * blocks))};
  const QuantizedKernels& kernels = Kernels();
  const QuantizedProduct product{rows,  static_cast<const uint8_t*>(panels), addend, out, m, n,
                                 blocks};
  auto run = type == WeightType::kInt8 ? kernels.int8 : kernels.int4;
  // Below this many products waking the threads costs more than the work.
#pragma omp parallel if (UseTeam(m * n * k > (1 << 17)))
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < m; ++row) kernels.quantize_row(x, row, blocks, rows);
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    run(product, Panels(n) * thread / threads, Panels(n) * (thread + 1) / threads);
  }
}

}  // namespace kvctl
