// "kvctl.cache.*": eviction, and sequences that leave a cache and come to another.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/reflection/registry.h>

#include <vector>

#include "ffi/cache_records.h"
#include "kvctl/paged_kv_cache.h"
#include "runtime/support/guard.h"
#include "runtime/support/stream_scope.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

void Evict(const PagedKVCache& cache, int64_t seq_id, const ffi::Shape& keep, bool rerotate) {
  std::vector<int32_t> kept;
  kept.reserve(keep.size());
  for (int64_t token : keep) {
    if (token < 0 || token > INT32_MAX) {
      Throw(ErrorKind::kIndex, "kept token ", token, " is not in sequence ", seq_id);
    }
    kept.push_back(static_cast<int32_t>(token));
  }
  cache->Evict(seq_id, kept, rerotate);
}

SavedSequenceRecord SaveSequence(const PagedKVCache& cache, int64_t seq_id) {
  return SavedSequenceRecord(cache->SaveSequence(seq_id));
}

void LoadSequence(const PagedKVCache& cache, int64_t seq_id, const SavedSequenceRecord& saved) {
  cache->LoadSequence(seq_id, saved.ToSaved(cache->config()));
}

/*! \brief The elements of a float32 tensor. */
ffi::json::Array Numbers(const Tensor& tensor) {
  const Tensor host = OnDevice(tensor, kHostDevice);
  const auto* data = static_cast<const float*>(DataPointer(host.operator->()));
  ffi::json::Array numbers;
  for (int64_t i = 0; i < host.numel(); ++i) numbers.push_back(double{data[i]});
  return numbers;
}

/*! \brief What two caches must agree on to exchange K and V. */
ffi::String KVLayout(const PagedKVCache& cache) {
  const PagedKVCacheConfig& config = cache->config();
  ffi::json::Object layout;
  layout.Set("num_layers", config.num_layers);
  layout.Set("first_layer", config.first_layer);
  layout.Set("num_kv_heads", config.num_kv_heads);
  layout.Set("head_dim", config.head_dim);
  layout.Set("dtype", ffi::DLDataTypeToString(config.dtype));
  if (config.kv_scales.has_value()) {
    layout.Set("kv_scales", Numbers(config.kv_scales.value()));
  } else if (PageDType(config.dtype) == DType::kFloat8) {
    const int64_t count = config.num_layers * 2 * config.num_kv_heads;
    const std::vector<ffi::Any> ones(count, 1.0);
    layout.Set("kv_scales", ffi::json::Array(ones.begin(), ones.end()));
  }
  if (config.rope_mode == RopeMode::kNone) {
    layout.Set("rope", ffi::String("none"));
  } else {
    layout.Set("rope", ffi::String(config.rope_mode == RopeMode::kNormal ? "normal" : "inline"));
    layout.Set("rope_by", ffi::String(config.split_rotary.has_value() ? "library" : "kvctl"));
    layout.Set("rope_theta", config.rope_theta);
    layout.Set("rope_scale", config.rope_scale);
    if (!config.rope_ext_factors.has_value()) {
      layout.Set("rope_ext_factors", false);
    } else {
      layout.Set("rope_ext_factors", Numbers(config.rope_ext_factors.value()));
    }
  }
  return ffi::json::Stringify(layout);
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef()
      .def("kvctl.cache.evict", OnStream(Evict), "Keep some committed tokens, drop the others")
      .def("kvctl.cache.save_sequence", OnStream(SaveSequence), "A copy of a sequence")
      .def("kvctl.cache.load_sequence", OnStream(LoadSequence), "Add a saved sequence")
      .def("kvctl.cache.get_kv_layout", Guarded(KVLayout), "What K and V mean in a cache, as JSON");
}

}  // namespace kvctl
