// "kvctl.cache.*": eviction, and sequences that leave a cache and come to another.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/reflection/registry.h>

#include <vector>

#include "kvctl/paged_kv_cache.h"
#include "runtime/support/guard.h"
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

/*! \brief The last axis as bytes: what NumPy reads whatever the type. */
Tensor AsBytes(const Tensor& kv) {
  const ffi::Shape shape{kv->shape[0], kv->shape[1], kv->shape[2],
                         kv->shape[3] * ((kv->dtype.bits + 7) / 8)};
  return kv.CreateView(shape, {kDLUInt, 8, 1});
}

/*! \brief Bytes as the K or V of a cache. */
Tensor FromBytes(const Tensor& bytes, const PagedKVCacheConfig& config) {
  const int64_t width = (config.dtype.bits + 7) / 8;
  CheckTensor(bytes.operator->(), "saved K and V", {kDLCPU, 0},
              {config.num_layers, kAnyExtent, config.num_kv_heads, config.head_dim * width});
  if (bytes->dtype.code != kDLUInt || bytes->dtype.bits != 8) {
    Throw(ErrorKind::kType, "saved K and V must be bytes");
  }
  const ffi::Shape shape{bytes->shape[0], bytes->shape[1], bytes->shape[2], config.head_dim};
  const Tensor view = bytes.CreateView(shape, config.dtype);
  return config.device.device_type == kDLCPU ? view : view.CopyTo(config.device);
}

/*! \brief [shape of numbers, positions or None, k, v], K and V as bytes on the host. */
ffi::Array<ffi::Any> SaveSequence(const PagedKVCache& cache, int64_t seq_id) {
  const SavedSequence saved = cache->SaveSequence(seq_id);
  const ffi::Shape numbers{saved.length,      saved.next_position,  saved.window_size,
                           saved.sinks,       saved.horizon,        saved.evicted_begin,
                           saved.evicted_end, saved.renumber_sinks, saved.reports_held_length};
  const bool on_host = cache->config().device.device_type == kDLCPU;
  const Tensor k = on_host ? saved.k : saved.k.CopyTo({kDLCPU, 0});
  const Tensor v = on_host ? saved.v : saved.v.CopyTo({kDLCPU, 0});
  return {numbers, saved.positions, AsBytes(k), AsBytes(v)};
}

void LoadSequence(const PagedKVCache& cache, int64_t seq_id, const ffi::Shape& numbers,
                  const ffi::Optional<Tensor>& positions, const Tensor& k, const Tensor& v) {
  if (numbers.size() != 9) {
    Throw(ErrorKind::kValue, "a saved sequence has 9 numbers, got ", numbers.size());
  }
  SavedSequence saved;
  saved.length = numbers[0];
  saved.next_position = numbers[1];
  saved.window_size = numbers[2];
  saved.sinks = numbers[3];
  saved.horizon = numbers[4];
  saved.evicted_begin = numbers[5];
  saved.evicted_end = numbers[6];
  saved.renumber_sinks = numbers[7] != 0;
  saved.reports_held_length = numbers[8] != 0;
  saved.positions = positions;
  saved.k = FromBytes(k, cache->config());
  saved.v = FromBytes(v, cache->config());
  cache->LoadSequence(seq_id, saved);
}

/*! \brief The elements of a float32 tensor. */
ffi::json::Array Numbers(const Tensor& tensor) {
  const Tensor host = tensor.CopyTo({kDLCPU, 0});
  const auto* data = static_cast<const float*>(DataPointer(host.operator->()));
  ffi::json::Array numbers;
  for (int64_t i = 0; i < host.numel(); ++i) numbers.push_back(double{data[i]});
  return numbers;
}

/*! \brief What two caches must have in common for K and V of one to mean the same in the other. */
ffi::String KVLayout(const PagedKVCache& cache) {
  const PagedKVCacheConfig& config = cache->config();
  ffi::json::Object layout;
  layout.Set("num_layers", config.num_layers);
  layout.Set("first_layer", config.first_layer);
  layout.Set("num_kv_heads", config.num_kv_heads);
  layout.Set("head_dim", config.head_dim);
  layout.Set("dtype", ffi::DLDataTypeToString(config.dtype));
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
      .def("kvctl.cache.evict", Guarded(Evict), "Keep some committed tokens, drop the others")
      .def("kvctl.cache.save_sequence", Guarded(SaveSequence), "A copy of a sequence")
      .def("kvctl.cache.load_sequence", Guarded(LoadSequence), "Add a saved sequence")
      .def("kvctl.cache.kv_layout", Guarded(KVLayout), "What K and V mean in a cache, as JSON");
}

}  // namespace kvctl
