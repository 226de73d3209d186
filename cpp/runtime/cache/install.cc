// kvctl's cache behind the function through which model libraries create theirs.
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <vector>

#include "kvctl/error.h"
#include "kvctl/paged_kv_cache.h"
#include "runtime/cache/window_pages.h"
#include "runtime/support/guard.h"
#include "runtime/support/replaced_function.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;

constexpr const char* kCreateName = "vm.builtin.paged_attention_kv_cache_create";

ReplacedFunction& CreateFunction() {
  static auto* function = new ReplacedFunction(kCreateName);  // never destroyed
  return *function;
}

/*! \brief The windows of the layers, by TVM's kinds of attention; empty if no layer has one. */
std::vector<int32_t> LayerWindows(const ffi::Shape& kinds, int64_t begin, int64_t end,
                                  int64_t window) {
  constexpr int64_t kMHA = 0, kMLA = 1, kMHASliding = 3;
  std::vector<int32_t> windows;
  bool any = false;
  for (int64_t layer = begin; layer < end; ++layer) {
    const int64_t kind = kinds[layer];
    if (kind != kMHA && kind != kMHASliding) {
      Throw(ErrorKind::kNotImplemented, "kvctl's paged cache does not support ",
            kind == kMLA ? "MLA layers" : "linear attention layers");
    }
    windows.push_back(kind == kMHASliding ? static_cast<int32_t>(window) : 0);
    any |= kind == kMHASliding;
  }
  if (!any) windows.clear();
  return windows;
}

RopeMode RopeModeOf(int64_t mode) {
  if (mode < 0 || mode > 2) {
    Throw(ErrorKind::kValue, "the RoPE mode must be 0 (none), 1 (normal) or 2 (inline), got ",
          mode);
  }
  return static_cast<RopeMode>(mode);
}

/*! \brief Reads the 28 or 29 arguments that a compiled model passes (TVM's paged_kv_cache.cc). */
PagedKVCacheConfig ConfigFromModel(const ffi::PackedArgs& args) {
  if (args.size() != 28 && args.size() != 29) {
    Throw(ErrorKind::kValue, kCreateName, " takes 28 or 29 arguments, got ", args.size());
  }
  const auto sizes = args[0].cast<ffi::Shape>();
  if (sizes.size() != 5 && sizes.size() != 6) {
    Throw(ErrorKind::kValue, "the cache configuration has 5 or 6 fields, got ", sizes.size());
  }
  const auto layers = args[1].cast<ffi::Shape>();
  if (layers.size() != 2) {
    Throw(ErrorKind::kNotImplemented, "kvctl's paged cache does not support pipeline parallelism");
  }
  if (args[7].cast<bool>()) {
    Throw(ErrorKind::kNotImplemented, "kvctl's paged cache does not support disaggregated prefill");
  }
  if (args[4].cast<int64_t>() != args[5].cast<int64_t>()) {
    Throw(ErrorKind::kNotImplemented, "kvctl's paged cache needs equal head dims for K and V, got ",
          args[4].cast<int64_t>(), " and ", args[5].cast<int64_t>());
  }
  PagedKVCacheConfig config;
  const int64_t total_tokens = sizes[1];
  config.prefill_chunk_size = sizes[2];
  config.page_size = sizes[3];
  if (config.page_size < 1) {
    Throw(ErrorKind::kValue, "the page size must be at least 1, got ", config.page_size);
  }
  auto pages_for = [&](int64_t tokens) {
    return (tokens + config.page_size - 1) / config.page_size;
  };
  config.num_pages = pages_for(total_tokens) + 1;
  if (sizes[4] != 0) {
    config.num_pages += PagesForWindows(config, sizes[0]);
  }
  config.first_layer = layers[0];
  config.num_layers = layers[1] - layers[0];
  config.layer_windows = LayerWindows(args[6].cast<ffi::Shape>(), layers[0], layers[1],
                                      sizes.size() == 6 ? sizes[5] : 1024);
  config.sliding_windows = sizes[4] != 0 && config.layer_windows.empty();
  config.num_qo_heads = args[2].cast<int64_t>();
  config.num_kv_heads = args[3].cast<int64_t>();
  config.head_dim = args[4].cast<int64_t>();
  config.rope_mode = RopeModeOf(args[8].cast<int64_t>());
  // TVM's windows move the keys that they hold, so they must be cached unrotated.
  if (sizes[4] != 0 && config.rope_mode != RopeMode::kNone) config.rope_mode = RopeMode::kInline;
  config.rope_scale = args[9].cast<double>();
  config.rope_theta = args[10].cast<double>();
  // A model without factors passes None or, as TVM's own compiler does, 0.
  const auto factors = args[11].as<tvm::runtime::Tensor>();
  if (factors.has_value() && factors->defined()) {
    if (FloatDType(factors->DataType(), "RoPE extension factors") != DType::kFloat32) {
      Throw(ErrorKind::kType, "RoPE extension factors must be float32");
    }
    config.rope_ext_factors = *factors;
  }
  const auto init = args[12].cast<tvm::runtime::Tensor>();
  config.dtype = init->dtype;
  config.device = init->device;
  config.split_rotary = args[24].cast<ffi::Function>();
  return config;
}

void CreateForModel(ffi::PackedArgs args, ffi::Any* result) {
  Guard([&] { *result = PagedKVCache::Create(ConfigFromModel(args)); });
}

}  // namespace

void InstallCache() {
  Guard([] { CreateFunction().Install(ffi::Function::FromPacked(CreateForModel)); });
}

void UninstallCache() {
  Guard([] { CreateFunction().Uninstall(); });
}

bool CacheInstalled() { return CreateFunction().installed(); }

}  // namespace kvctl
