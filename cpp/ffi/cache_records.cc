#include "ffi/cache_records.h"

#include <tvm/ffi/dtype.h>
#include <tvm/ffi/reflection/registry.h>

#include <utility>

#include "kernels/int8_row.h"
#include "kvctl/error.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

/*! \brief The last axis as bytes. */
Tensor AsBytes(const Tensor& kv) {
  const ffi::Shape shape{kv->shape[0], kv->shape[1], kv->shape[2],
                         kv->shape[3] * ((kv->dtype.bits + 7) / 8)};
  return kv.CreateView(shape, {kDLUInt, 8, 1});
}

/*! \brief Bytes as the K or V of a cache. */
Tensor FromBytes(const Tensor& bytes, const PagedKVCacheConfig& config) {
  const DType dtype = PageDType(config.dtype);
  const int64_t row = RowElements(dtype, config.head_dim);
  TensorData<const uint8_t>(
      bytes, "saved K and V",
      {config.num_layers, kAnyExtent, config.num_kv_heads, row * DTypeSize(dtype)});
  const ffi::Shape shape{bytes->shape[0], bytes->shape[1], bytes->shape[2], row};
  const Tensor view = bytes.CreateView(shape, config.dtype);
  return OnDevice(view, config.device);
}

}  // namespace

CacheConfig::CacheConfig(const PagedKVCacheConfig& config) {
  ffi::ObjectPtr<CacheConfigObj> record = ffi::make_object<CacheConfigObj>();
  record->num_layers = config.num_layers;
  record->num_qo_heads = config.num_qo_heads;
  record->num_kv_heads = config.num_kv_heads;
  record->head_dim = config.head_dim;
  record->max_total_tokens = config.num_pages * config.page_size;
  record->page_size = config.page_size;
  record->max_sequences = config.max_sequences;
  record->prefill_chunk_size = config.prefill_chunk_size;
  record->dtype = ffi::DLDataTypeToString(config.dtype);
  record->device = config.device;
  record->rope_mode = static_cast<int64_t>(config.rope_mode);
  record->rope_scale = config.rope_scale;
  record->rope_theta = config.rope_theta;
  record->layer_windows = ffi::Shape(config.layer_windows.begin(), config.layer_windows.end());
  record->kv_scales = config.kv_scales;
  data_ = std::move(record);
}

PagedKVCacheConfig CacheConfig::ToConfig() const {
  const CacheConfigObj* record = get();
  PagedKVCacheConfig config;
  config.num_layers = record->num_layers;
  config.num_qo_heads = record->num_qo_heads;
  config.num_kv_heads = record->num_kv_heads;
  config.head_dim = record->head_dim;
  config.page_size = record->page_size;
  if (record->max_total_tokens < 1) {
    Throw(ErrorKind::kValue, "max_total_tokens must be at least 1, got ", record->max_total_tokens);
  }
  config.num_pages =
      config.page_size < 1 ? 1 : (record->max_total_tokens - 1) / config.page_size + 1;
  config.max_sequences = record->max_sequences;
  config.prefill_chunk_size = record->prefill_chunk_size;
  config.dtype = ffi::StringToDLDataType(record->dtype);
  config.device = record->device;
  if (record->rope_mode < 0 || record->rope_mode > static_cast<int64_t>(RopeMode::kInline)) {
    Throw(ErrorKind::kValue, "rope_mode must be 0, 1 or 2, got ", record->rope_mode);
  }
  config.rope_mode = static_cast<RopeMode>(record->rope_mode);
  config.rope_scale = record->rope_scale;
  config.rope_theta = record->rope_theta;
  for (int64_t window : record->layer_windows) {
    if (window < 0 || window > INT32_MAX) {
      Throw(ErrorKind::kValue, "a layer's window must be in [0, 2^31), got ", window);
    }
    config.layer_windows.push_back(static_cast<int32_t>(window));
  }
  config.kv_scales = record->kv_scales;
  return config;
}

SavedSequenceRecord::SavedSequenceRecord(const SavedSequence& saved) {
  ffi::ObjectPtr<SavedSequenceRecordObj> record = ffi::make_object<SavedSequenceRecordObj>();
  record->length = saved.length;
  record->next_position = saved.next_position;
  record->window_size = saved.window_size;
  record->sinks = saved.sinks;
  record->horizon = saved.horizon;
  record->evicted_begin = saved.evicted_begin;
  record->evicted_end = saved.evicted_end;
  record->renumber_sinks = saved.renumber_sinks;
  record->reports_held_length = saved.reports_held_length;
  record->positions = saved.positions;
  record->k = AsBytes(OnDevice(saved.k, kHostDevice));
  record->v = AsBytes(OnDevice(saved.v, kHostDevice));
  data_ = std::move(record);
}

SavedSequence SavedSequenceRecord::ToSaved(const PagedKVCacheConfig& config) const {
  const SavedSequenceRecordObj* record = get();
  SavedSequence saved;
  saved.length = record->length;
  saved.next_position = record->next_position;
  saved.window_size = record->window_size;
  saved.sinks = record->sinks;
  saved.horizon = record->horizon;
  saved.evicted_begin = record->evicted_begin;
  saved.evicted_end = record->evicted_end;
  saved.renumber_sinks = record->renumber_sinks;
  saved.reports_held_length = record->reports_held_length;
  saved.positions = record->positions;
  saved.k = FromBytes(record->k, config);
  saved.v = FromBytes(record->v, config);
  return saved;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::ObjectDef<CacheConfigObj>()
      .def_ro("num_layers", &CacheConfigObj::num_layers)
      .def_ro("num_qo_heads", &CacheConfigObj::num_qo_heads)
      .def_ro("num_kv_heads", &CacheConfigObj::num_kv_heads)
      .def_ro("head_dim", &CacheConfigObj::head_dim)
      .def_ro("max_total_tokens", &CacheConfigObj::max_total_tokens)
      .def_ro("page_size", &CacheConfigObj::page_size)
      .def_ro("max_sequences", &CacheConfigObj::max_sequences)
      .def_ro("prefill_chunk_size", &CacheConfigObj::prefill_chunk_size)
      .def_ro("dtype", &CacheConfigObj::dtype)
      .def_ro("device", &CacheConfigObj::device)
      .def_ro("rope_mode", &CacheConfigObj::rope_mode)
      .def_ro("rope_scale", &CacheConfigObj::rope_scale)
      .def_ro("rope_theta", &CacheConfigObj::rope_theta)
      .def_ro("layer_windows", &CacheConfigObj::layer_windows)
      .def_ro("kv_scales", &CacheConfigObj::kv_scales);
  refl::ObjectDef<SavedSequenceRecordObj>()
      .def_ro("length", &SavedSequenceRecordObj::length)
      .def_ro("next_position", &SavedSequenceRecordObj::next_position)
      .def_ro("window_size", &SavedSequenceRecordObj::window_size)
      .def_ro("sinks", &SavedSequenceRecordObj::sinks)
      .def_ro("horizon", &SavedSequenceRecordObj::horizon)
      .def_ro("evicted_begin", &SavedSequenceRecordObj::evicted_begin)
      .def_ro("evicted_end", &SavedSequenceRecordObj::evicted_end)
      .def_ro("renumber_sinks", &SavedSequenceRecordObj::renumber_sinks)
      .def_ro("reports_held_length", &SavedSequenceRecordObj::reports_held_length)
      .def_ro("positions", &SavedSequenceRecordObj::positions)
      .def_ro("k", &SavedSequenceRecordObj::k)
      .def_ro("v", &SavedSequenceRecordObj::v);
}

}  // namespace kvctl
