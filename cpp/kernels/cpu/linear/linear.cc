#include "kernels/linear.h"

#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/linear/linear_onednn.h"
#include "kernels/cpu/linear/model_kernels.h"
#include "kernels/cpu/quantized/linear_quantized.h"
#include "kernels/cpu/tiles/linear_tiles.h"
#include "kernels/team.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr uint32_t kMagic = 0x4c43564b;  // "KVCL"

/*! \brief The header of a packed weight, 64 bytes; panels (or oneDNN's bytes) follow. */
struct alignas(64) Head {
  uint32_t magic;
  LinearBackend backend;
  WeightType type;
  Isa isa;
  int64_t n;
  int64_t k;
  int64_t bytes;  // including this header
};
static_assert(sizeof(Head) == 64, "panels are aligned behind it");

const void* Body(const void* packed) { return static_cast<const char*>(packed) + sizeof(Head); }
void* Body(void* packed) { return static_cast<char*>(packed) + sizeof(Head); }

size_t WeightSize(WeightType type) { return type == WeightType::kFloat32 ? 4 : 2; }

size_t QuantizedBytes(int64_t n, int64_t k, WeightType type) {
  if (k % kBlockInputs != 0) {
    Throw(ErrorKind::kValue, "a weight of 8 or 4 bits must have a multiple of ", kBlockInputs,
          " columns, not ", k);
  }
  const int64_t panels = (n + kQuantizedWidth - 1) / kQuantizedWidth;
  return static_cast<size_t>(panels * (k / kBlockInputs) * PanelBlockBytes(type));
}

/*! \brief Rounds to the nearest bfloat16, ties to even; NaN stays NaN. */
uint16_t ToBFloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/*! \brief Panel-major, k-major within a panel; columns behind the last one are zero. */
void PackPanels(const float* weight, int64_t n, int64_t k, WeightType type, int width, void* out) {
  const int64_t panels = (n + width - 1) / width;
#pragma omp parallel for schedule(static) if (UseTeam(true))
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t i = 0; i < k; ++i) {
      for (int c = 0; c < width; ++c) {
        const int64_t column = p * width + c;
        const float value = column < n ? weight[column * k + i] : 0.0f;
        const int64_t at = (p * k + i) * width;
        if (type == WeightType::kFloat32) {
          static_cast<float*>(out)[at + c] = value;
        } else {
          // Column c and column c + width / 2 share a 32-bit lane: a shift gives one, a mask the
          // other.
          const int half = width / 2;
          static_cast<uint16_t*>(out)[at + (c % half) * 2 + c / half] = ToBFloat16(value);
        }
      }
    }
  }
}

}  // namespace

LinearBackend ChooseLinearBackend(WeightType type) {
  static const char* const value = std::getenv("KVCTL_LINEAR");
  const char* wanted = value != nullptr && *value != '\0' ? value : nullptr;
  if (wanted != nullptr && std::strcmp(wanted, "own") != 0 && std::strcmp(wanted, "onednn") != 0) {
    Throw(ErrorKind::kValue, "the environment variable KVCTL_LINEAR must be own or onednn, not '",
          wanted, "'");
  }
  if (type == WeightType::kBFloat16) {
    return CpuHasTiles() ? LinearBackend::kAmx : LinearBackend::kOwn;
  }
  if (IsQuantized(type)) return LinearBackend::kOwn;
  const bool onednn = wanted != nullptr && std::strcmp(wanted, "onednn") == 0;
  return onednn && OneDNN() != nullptr ? LinearBackend::kOneDNN : LinearBackend::kOwn;
}

std::vector<LinearKernel> LinearKernels(WeightType type) {
  if (IsQuantized(type)) return QuantizedKernelNames();
  switch (ChooseLinearBackend(type)) {
    case LinearBackend::kOneDNN:
      return {{"oneDNN", 1}};
    case LinearBackend::kAmx:
      return {{"AMX tiles", 1}};
    default:
      return {{IsaName(CpuIsa()), 1}};
  }
}

size_t PackedLinearBytes(int64_t n, int64_t k, WeightType type, LinearBackend backend) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (n <= 0 || k <= 0 || n > kMost || k > kMost) {
    Throw(ErrorKind::kValue, "a linear layer's weight must have 1 to ", kMost,
          " rows and columns, not (", n, ", ", k, ")");
  }
  if (backend == LinearBackend::kOneDNN) return sizeof(Head) + OneDNN()->packed_bytes(n, k);
  if (IsQuantized(type)) return sizeof(Head) + QuantizedBytes(n, k, type);
  const bool tiles = backend == LinearBackend::kAmx;
  const int width = tiles ? kTilePanelWidth : ModelKernelsFor(CpuIsa()).panel_width;
  const int64_t columns = (n + width - 1) / width * width;
  if (tiles) k = TileInputs(k);
  if (columns > std::numeric_limits<int64_t>::max() / 8 / k) {
    Throw(ErrorKind::kValue, "a weight of (", n, ", ", k, ") is too large");
  }
  return sizeof(Head) + static_cast<size_t>(columns * k) * WeightSize(type);
}

void PackBlocks(const uint8_t* blocks, int64_t n, int64_t k, WeightType type, void* packed) {
  const size_t bytes = PackedLinearBytes(n, k, type, LinearBackend::kOwn);
  const Head head{kMagic, LinearBackend::kOwn, type, CpuIsa(), n, k, static_cast<int64_t>(bytes)};
  std::memcpy(packed, &head, sizeof(head));
  PackQuantizedPanels(blocks, n, k, type, Body(packed));
}

void PackLinear(const float* weight, int64_t n, int64_t k, WeightType type, LinearBackend backend,
                void* packed) {
  const size_t bytes = PackedLinearBytes(n, k, type, backend);
  if (HasOffset(type)) {
    Throw(ErrorKind::kValue,
          "float32 weights are packed as int8 or int4: blocks with an offset are "
          "packed as they are");
  }
  if (IsQuantized(type)) {
    std::vector<uint8_t> blocks(static_cast<size_t>(n * (k / kBlockInputs) * BlockBytes(type)));
    QuantizeBlocks(weight, n * k, type, blocks.data());
    PackBlocks(blocks.data(), n, k, type, packed);
    return;
  }
  Head head{kMagic, backend, type, CpuIsa(), n, k, static_cast<int64_t>(bytes)};
  std::memcpy(packed, &head, sizeof(head));
  if (backend == LinearBackend::kOneDNN) {
    UseTeam(true);
    OneDNN()->pack(weight, n, k, Body(packed));
  } else if (backend == LinearBackend::kAmx) {
    PackTiles(weight, n, k, Body(packed));
  } else {
    PackPanels(weight, n, k, type, ModelKernelsFor(head.isa).panel_width, Body(packed));
  }
}

PackedLinearInfo InspectPackedLinear(const void* packed, size_t bytes) {
  Head head{};
  if (bytes >= sizeof(head)) std::memcpy(&head, packed, sizeof(head));
  if (head.magic != kMagic || head.isa != CpuIsa() || static_cast<size_t>(head.bytes) != bytes) {
    Throw(ErrorKind::kValue, "these ", bytes,
          " bytes are not a weight packed on this machine: pass the tensor that "
          "kvctl.model.pack_linear "
          "returned");
  }
  return {head.n, head.k, head.type, head.backend};
}

void Linear(const float* x, int64_t m, const void* packed, const float* addend, float* out) {
  if (m == 0) return;
  Head head;
  std::memcpy(&head, packed, sizeof(head));
  if (head.backend == LinearBackend::kOneDNN) {
    UseTeam(true);
    OneDNN()->linear(x, m, Body(packed), head.n, head.k, addend, out);
    return;
  }
  if (head.backend == LinearBackend::kAmx) {
    LinearTiles(x, m, Body(packed), head.n, head.k, addend, out);
    return;
  }
  if (IsQuantized(head.type)) {
    LinearQuantized(x, m, Body(packed), head.n, head.k, head.type, addend, out);
    return;
  }
  const ModelKernels& kernels = ModelKernelsFor(head.isa);
  const PanelProduct product{x, Body(packed), addend, out, m, head.n, head.k};
  const int64_t panels = (head.n + kernels.panel_width - 1) / kernels.panel_width;
  auto run = head.type == WeightType::kFloat32 ? kernels.linear_f32 : kernels.linear_bf16;
  // Below this many products waking the threads costs more than the work.
#pragma omp parallel if (UseTeam(m * head.n * head.k > (1 << 16)))
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    run(product, panels * thread / threads, panels * (thread + 1) / threads);
  }
}

}  // namespace kvctl
