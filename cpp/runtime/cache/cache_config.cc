#include "runtime/cache/cache_config.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kv_copy.h"
#include "kvctl/error.h"
#include "runtime/cache/backend/cache_backend.h"
#include "runtime/support/device.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

void RequirePositive(int64_t value, const char* name) {
  if (value < 1) Throw(ErrorKind::kValue, name, " must be at least 1, got ", value);
}

/*! \brief Pages of 8-bit floats: their rows and scales. */
void CheckFloat8(const PagedKVCacheConfig& config) {
  if (PageDType(config.dtype) != DType::kFloat8) {
    if (!config.kv_scales.has_value()) return;
    Throw(ErrorKind::kValue, "kv_scales are for float8_e4m3fn pages, and these are of ",
          DTypeText(config.dtype));
  }
  if (config.head_dim % 16 != 0) {
    Throw(ErrorKind::kValue, "head_dim must be a multiple of 16 with float8_e4m3fn pages, got ",
          config.head_dim);
  }
  for (const float scale : KVScales(config)) {
    if (scale > 0 && std::isfinite(448 * scale)) continue;
    Throw(ErrorKind::kValue, "kv_scales must be above 0 and, times 448, finite, got ", scale);
  }
}

}  // namespace

const PagedKVCacheConfig& CheckedConfig(const PagedKVCacheConfig& config) {
  RequirePositive(config.num_layers, "num_layers");
  RequirePositive(config.num_qo_heads, "num_qo_heads");
  RequirePositive(config.num_kv_heads, "num_kv_heads");
  RequirePositive(config.head_dim, "head_dim");
  RequirePositive(config.page_size, "page_size");
  RequirePositive(config.num_pages, "the number of pages");
  RequirePositive(config.prefill_chunk_size, "prefill_chunk_size");
  if (config.num_qo_heads % config.num_kv_heads != 0) {
    Throw(ErrorKind::kValue, "num_qo_heads must be a multiple of num_kv_heads, got ",
          config.num_qo_heads, " and ", config.num_kv_heads);
  }
  if (config.head_dim % 8 != 0 || config.head_dim > 256) {
    Throw(ErrorKind::kValue, "head_dim must be a multiple of 8 and at most 256, got ",
          config.head_dim);
  }
  constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
  if (config.num_pages > kMaxInt / config.page_size) {
    Throw(ErrorKind::kValue, "a cache of ", config.num_pages, " pages of ", config.page_size,
          " tokens is larger than 2^31 - 1 tokens");
  }
  if (config.prefill_chunk_size > kMaxInt) {
    Throw(ErrorKind::kValue, "prefill_chunk_size must be less than 2^31, got ",
          config.prefill_chunk_size);
  }
  if (config.num_qo_heads > kMaxInt / config.head_dim) {
    Throw(ErrorKind::kValue, "num_qo_heads * head_dim must be less than 2^31, got ",
          config.num_qo_heads, " and ", config.head_dim);
  }
  if (config.max_sequences < 0 || config.max_sequences > kMaxInt) {
    Throw(ErrorKind::kValue, "max_sequences must be in [0, 2^31), 0 being any number, got ",
          config.max_sequences);
  }
  const DType dtype = PageDType(config.dtype);
  const double bytes = 2.0 * DTypeSize(dtype) * RowElements(dtype, config.head_dim) *
                       config.num_kv_heads * config.page_size * config.num_pages *
                       config.num_layers;
  RequireMemory(config.device, bytes, "the cache");
  CacheBackend::CheckDevice(config);
  CheckFloat8(config);
  if (dtype == DType::kInt8 && config.rope_mode == RopeMode::kInline) {
    Throw(
        ErrorKind::kNotImplemented,
        "int8 pages are not implemented with inline RoPE, which rotates keys that it has rounded; "
        "create the cache with normal RoPE, or with a 16-bit dtype");
  }
  if (!config.layer_windows.empty() &&
      static_cast<int64_t>(config.layer_windows.size()) != config.num_layers) {
    Throw(ErrorKind::kValue, "layer_windows names ", config.layer_windows.size(),
          " layers and the cache has ", config.num_layers);
  }
  for (int32_t window : config.layer_windows) {
    if (window < 0) Throw(ErrorKind::kValue, "a layer's window must not be negative, got ", window);
  }
  return config;
}

TableConfig ToTableConfig(const PagedKVCacheConfig& config) {
  return {static_cast<int32_t>(config.num_pages), static_cast<int32_t>(config.page_size),
          static_cast<int32_t>(config.prefill_chunk_size),
          static_cast<int32_t>(config.max_sequences)};
}

SlidingWindow MakeWindow(const PagedKVCacheConfig& config, int64_t size, int64_t sinks,
                         int64_t horizon, bool renumber_sinks) {
  if (renumber_sinks && config.rope_mode == RopeMode::kNone) {
    Throw(ErrorKind::kValue, "this cache does not rotate keys, so it cannot renumber sinks");
  }
  constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
  SlidingWindow window;
  window.size = static_cast<int32_t>(std::clamp<int64_t>(size, -1, kMaxInt));
  window.sinks = static_cast<int32_t>(std::clamp<int64_t>(sinks, -1, kMaxInt));
  window.rollback_window = static_cast<int32_t>(std::clamp<int64_t>(horizon, -1, kMaxInt));
  window.renumber_sinks = renumber_sinks;
  return window;
}

SlidingWindow MakeTvmWindow(const PagedKVCacheConfig& config, int32_t size, int32_t sinks) {
  if (sinks < 0 || sinks >= size) {
    Throw(ErrorKind::kValue, "attention sinks must be at least 0 and fewer than the window of ",
          size, " tokens, got ", sinks);
  }
  // TVM counts the sinks as part of the window, but not the token itself, which sees that many
  // tokens before it.
  SlidingWindow window = MakeWindow(config, int64_t{size} - sinks + 1, sinks, kDefaultHorizon,
                                    config.rope_mode != RopeMode::kNone);
  window.reports_held_length = true;
  return window;
}

}  // namespace kvctl
