// "kvctl.cache.*": where K and V lie, for kernels of others and for recorded graphs.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/reflection/registry.h>

#include <vector>

#include "ffi/cache_records.h"
#include "kvctl/paged_kv_cache.h"
#include "runtime/support/guard.h"
#include "runtime/support/stream_scope.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

Tensor LayerPages(const PagedKVCache& cache, int64_t layer) { return cache->LayerPages(layer); }
void ForgetGraphs(const PagedKVCache& cache) { cache->ForgetGraphs(); }

int64_t CountSaturated(const PagedKVCache& cache) { return cache->CountSaturated(); }

/*! \brief The members of GraphState, in their order. */
ffi::Array<int64_t> GetGraphState(const PagedKVCache& cache) {
  const GraphState state = cache->ReadGraphState();
  return {state.num_new_tokens, state.item_rows, state.generation, state.num_captured,
          static_cast<int64_t>(state.stream)};
}

/*! \brief The members of UploadState, in their order. */
ffi::Array<int64_t> GetUploads(const PagedKVCache& cache) {
  const UploadState state = cache->ReadUploads();
  return {state.num_bytes, state.num_words, state.num_different,
          static_cast<int64_t>(state.address)};
}

Tensor ToDevice(const std::vector<int32_t>& values, DLDevice device) {
  Tensor tensor =
      Tensor::Empty({static_cast<int64_t>(values.size())}, DLDataType{kDLInt, 32, 1}, device);
  if (!values.empty()) tensor.CopyFromBytes(values.data(), values.size() * sizeof(int32_t));
  return tensor;
}

/*! \brief indptr [sequences + 1], indices and last_page_len [sequences], as FlashInfer takes them.
 */
ffi::Array<Tensor> PageTable(const PagedKVCache& cache, const ffi::Shape& seq_ids) {
  const PagedKVCacheConfig& config = cache->config();
  std::vector<int32_t> indptr = {0}, indices, last_page_len;
  for (int64_t seq_id : seq_ids) {
    for (int64_t page : cache->PageIds(seq_id)) {
      if (page < 0) {
        Throw(ErrorKind::kValue, "sequence ", seq_id,
              " has evicted pages, which a page table "
              "without a mask cannot leave out");
      }
      indices.push_back(static_cast<int32_t>(page));
    }
    indptr.push_back(static_cast<int32_t>(indices.size()));
    const int64_t length = cache->KVLength(seq_id);
    last_page_len.push_back(
        length == 0 ? 0 : static_cast<int32_t>((length - 1) % config.page_size + 1));
  }
  const DLDevice device = config.device;
  return {ToDevice(indptr, device), ToDevice(indices, device), ToDevice(last_page_len, device)};
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef()
      .def("kvctl.cache.get_layer_pages", Guarded(LayerPages), "A layer's pages, where they lie")
      .def("kvctl.cache.get_page_table", OnStream(PageTable), "Where sequences lie in the pages")
      .def("kvctl.cache.forget_graphs", Guarded(ForgetGraphs),
           "Recorded CUDA graphs are not replayed any more")
      .def("kvctl.cache.count_saturated", OnStream(CountSaturated),
           "Elements of K and V that are too large for their scale")
      .def("kvctl.cache.get_graph_state", Guarded(GetGraphState),
           "What a graph recorded now would depend on")
      .def("kvctl.cache.get_uploads", OnStream(GetUploads),
           "What the last step sent to the device, compared with what the host thinks is there");
}

}  // namespace kvctl
