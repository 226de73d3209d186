/*!
 * \file benchmarks/cpp/tvm_cache.h
 * \brief TVM's own cache and kvctl's, created alike for measuring what they cost on the host.
 */
#ifndef KVCTL_BENCHMARKS_TVM_CACHE_H_
#define KVCTL_BENCHMARKS_TVM_CACHE_H_

#include <kvctl/paged_kv_cache.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/function.h>
#include <tvm/runtime/tensor.h>

namespace kvctl_bench {

struct CacheSize {
  int64_t sequences;
  int64_t tokens;
  int64_t chunk;
  int64_t page_size;
};

constexpr int64_t kHeadDim = 8;  // small: many tokens must fit, and no kernel is measured

/*! \brief TVM's cache on kernels that do nothing, which needs no compiler. */
inline tvm::runtime::vm::AttentionKVCache CreateTVMCache(const CacheSize& size) {
  using tvm::ffi::Any;
  using tvm::ffi::Array;
  using tvm::ffi::Function;
  using tvm::ffi::Shape;
  Function nothing = Function::FromPacked([](tvm::ffi::PackedArgs, Any*) {});
  Array<Any> kernel{tvm::ffi::String("tirx"), nothing};
  auto init = tvm::runtime::Tensor::Empty({}, DLDataType{kDLFloat, 32, 1}, DLDevice{kDLCPU, 0});
  return Function::GetGlobalRequired("vm.builtin.paged_attention_kv_cache_create")(
             Shape({size.sequences, size.tokens, size.chunk, size.page_size, 0, 1024}),
             Shape({0, 1}), /*heads=*/1, 1, kHeadDim, kHeadDim, /*attn_kinds=*/Shape({0}),
             /*transfer=*/false, /*rope=*/0, 1.0, 10000.0, nullptr, init, nothing, nullptr, kernel,
             kernel, kernel, kernel, kernel, kernel, kernel, Array<Any>(),
             Array<Function>{nothing, nothing}, nothing, nothing, nothing, nothing)
      .cast<tvm::runtime::vm::AttentionKVCache>();
}

/*! \brief kvctl's cache with as many pages as TVM takes for the same sizes. */
inline kvctl::PagedKVCache CreateOwnCache(const CacheSize& size) {
  kvctl::PagedKVCacheConfig config;
  config.num_layers = config.num_qo_heads = config.num_kv_heads = 1;
  config.head_dim = kHeadDim;
  config.page_size = size.page_size;
  config.num_pages = (size.tokens + size.page_size - 1) / size.page_size + 1;
  config.max_sequences = size.sequences;
  config.prefill_chunk_size = size.chunk;
  return kvctl::PagedKVCache::Create(config);
}

}  // namespace kvctl_bench

#endif  // KVCTL_BENCHMARKS_TVM_CACHE_H_
