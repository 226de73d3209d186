// The parts of TVM's interface that kvctl does not offer: each says so.
#include "kvctl/error.h"
#include "runtime/cache/paged_kv_cache_impl.h"

namespace kvctl {
namespace {

[[noreturn]] void Unsupported(const char* what) {
  throw ToFFIError(ErrorKind::kNotImplemented,
                   std::string("kvctl's paged cache does not support ") + what);
}

}  // namespace

PagedKVCacheImpl::Shape PagedKVCacheImpl::DisaggPrepareRecv(int64_t, int) {
  Unsupported("disaggregated prefill (KV sent over NVSHMEM)");
}
void PagedKVCacheImpl::DisaggMarkSend(int64_t, int64_t, const Shape&, int32_t) {
  Unsupported("disaggregated prefill (KV sent over NVSHMEM)");
}
void PagedKVCacheImpl::AppendMLAKV(int64_t, Tensor) {
  Unsupported("MLA (multi-head latent attention)");
}
void PagedKVCacheImpl::LinearAttention(int64_t, Tensor, Tensor, Tensor, double) {
  Unsupported("linear attention");
}
void PagedKVCacheImpl::DebugGetKVMLA(int64_t, int64_t, int64_t, Tensor) {
  Unsupported("MLA (multi-head latent attention)");
}

}  // namespace kvctl
