/*!
 * \file ffi/cache_records.h
 * \brief What crosses the FFI by the names of its fields: a cache's configuration, a saved
 * sequence.
 */
#ifndef KVCTL_FFI_CACHE_RECORDS_H_
#define KVCTL_FFI_CACHE_RECORDS_H_

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/object.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>
#include <tvm/runtime/tensor.h>

#include <cstdint>

#include "kvctl/paged_kv_cache.h"

namespace kvctl {

/*! \brief A PagedKVCacheConfig, as far as Python sets it. */
class CacheConfigObj : public tvm::ffi::Object {
 public:
  int64_t num_layers = 0;
  int64_t num_qo_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_total_tokens = 0;  //!< of all sequences; Create rounds it up to whole pages
  int64_t page_size = 0;
  int64_t max_sequences = 0;
  int64_t prefill_chunk_size = 0;
  tvm::ffi::String dtype;
  DLDevice device = {kDLCPU, 0};
  int64_t rope_mode = 0;  //!< a RopeMode
  double rope_scale = 1.0;
  double rope_theta = 1.0;
  tvm::ffi::Shape layer_windows;  //!< a window's size for each layer, 0 for none; or empty
  tvm::ffi::Optional<tvm::runtime::Tensor> kv_scales;  //!< of float8_e4m3fn pages

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.CacheConfig", CacheConfigObj, tvm::ffi::Object);
};

class CacheConfig : public tvm::ffi::ObjectRef {
 public:
  explicit CacheConfig(const PagedKVCacheConfig& config);
  /*! \throws Error kValue for sizes of which no pages can be made. */
  PagedKVCacheConfig ToConfig() const;

  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(CacheConfig, tvm::ffi::ObjectRef, CacheConfigObj);
};

/*! \brief A SavedSequence whose K and V are bytes on the host: what NumPy reads, whatever the type.
 */
class SavedSequenceRecordObj : public tvm::ffi::Object {
 public:
  int64_t length = 0;
  int64_t next_position = 0;
  int64_t window_size = 0;
  int64_t sinks = 0;
  int64_t horizon = 0;
  int64_t evicted_begin = 0;
  int64_t evicted_end = 0;
  bool renumber_sinks = false;
  bool reports_held_length = false;
  tvm::ffi::Optional<tvm::runtime::Tensor> positions;
  tvm::runtime::Tensor k;
  tvm::runtime::Tensor v;

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.SavedSequenceRecord", SavedSequenceRecordObj,
                                    tvm::ffi::Object);
};

class SavedSequenceRecord : public tvm::ffi::ObjectRef {
 public:
  explicit SavedSequenceRecord(const SavedSequence& saved);
  /*! \throws Error kValue or kType if K and V are not those of a cache with this configuration. */
  SavedSequence ToSaved(const PagedKVCacheConfig& config) const;

  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(SavedSequenceRecord, tvm::ffi::ObjectRef,
                                             SavedSequenceRecordObj);
};

/*! \brief For OnStream. */
inline DLDevice DeviceOf(const PagedKVCache& cache) { return cache->config().device; }

}  // namespace kvctl

#endif  // KVCTL_FFI_CACHE_RECORDS_H_
