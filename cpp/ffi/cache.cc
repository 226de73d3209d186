// "kvctl.cache.*": what the paged cache does beyond vm.builtin.kv_state_* and attention_kv_cache_*.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/memory/memory_manager.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "core/cache/sequence_table.h"
#include "core/support/narrow.h"
#include "ffi/cache_records.h"
#include "ffi/mask_argument.h"
#include "kvctl/paged_kv_cache.h"
#include "runtime/cache/window_pages.h"
#include "runtime/support/guard.h"
#include "runtime/support/stream_scope.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

PagedKVCache Create(const CacheConfig& config) { return PagedKVCache::Create(config.ToConfig()); }
CacheConfig ConfigOf(const PagedKVCache& cache) { return CacheConfig(cache->config()); }

/*! \brief Creates the cache of a model that kvctl compiled. Sizes are those of TVM's create;
 * layer_windows names every layer, or none. */
PagedKVCache CreateWithWindows(const ffi::Shape& sizes, int64_t num_layers,
                               const ffi::Shape& layer_windows, int64_t num_qo_heads,
                               int64_t num_kv_heads, int64_t head_dim, int64_t rope_mode,
                               double rope_scale, double rope_theta, const Tensor& init) {
  if (sizes.size() != 5 && sizes.size() != 6) {
    Throw(ErrorKind::kValue, "the cache configuration has 5 or 6 fields, got ", sizes.size());
  }
  PagedKVCacheConfig config;
  config.num_layers = num_layers;
  config.num_qo_heads = num_qo_heads;
  config.num_kv_heads = num_kv_heads;
  config.head_dim = head_dim;
  config.max_sequences = sizes[0];
  config.prefill_chunk_size = sizes[2];
  config.page_size = sizes[3];
  config.num_pages = sizes[3] < 1 ? 0 : (sizes[1] + sizes[3] - 1) / sizes[3];
  if (sizes[4] != 0) config.num_pages += PagesForWindows(config, sizes[0]);
  config.dtype = init->dtype;
  config.device = init->device;
  config.rope_mode = rope_mode == 0 ? RopeMode::kNone : RopeMode::kNormal;
  config.rope_scale = rope_scale;
  config.rope_theta = rope_theta;
  for (int64_t window : layer_windows) {
    config.layer_windows.push_back(Narrow(window, "a layer's window"));
  }
  return PagedKVCache::Create(config);
}

/*! \brief The same for a model whose layers all see everything. */
PagedKVCache CreateForModel(const ffi::Shape& sizes, int64_t num_layers, int64_t num_qo_heads,
                            int64_t num_kv_heads, int64_t head_dim, int64_t rope_mode,
                            double rope_scale, double rope_theta, const Tensor& init) {
  return CreateWithWindows(sizes, num_layers, ffi::Shape(), num_qo_heads, num_kv_heads, head_dim,
                           rope_mode, rope_scale, rope_theta, init);
}

/*!
 * \param positions [rows of all sequences], or nullopt.
 * \param pending 1: yes, 0: no, -1: exactly where the mask is a tree.
 */
void BeginForward(const PagedKVCache& cache, const ffi::Shape& seq_ids,
                  const ffi::Shape& append_lengths,
                  const ffi::Optional<ffi::Array<ffi::Optional<Tensor>>>& masks,
                  const ffi::Optional<ffi::Shape>& positions, int64_t pending) {
  if (seq_ids.size() != append_lengths.size()) {
    Throw(ErrorKind::kValue, "begin_forward names ", seq_ids.size(), " sequences and gives ",
          append_lengths.size(), " append lengths");
  }
  if (masks.has_value() && masks.value().size() != seq_ids.size()) {
    Throw(ErrorKind::kValue, "begin_forward names ", seq_ids.size(), " sequences and gives ",
          masks.value().size(), " masks");
  }
  int64_t total = 0;
  for (int64_t length : append_lengths) total += std::max<int64_t>(length, 0);
  std::vector<int32_t> flat_positions;
  if (positions.has_value()) {
    if (static_cast<int64_t>(positions.value().size()) != total) {
      Throw(ErrorKind::kValue, "the step has ", total, " new tokens and ", positions.value().size(),
            " positions were given");
    }
    for (int64_t position : positions.value()) {
      if (position < 0 || position >= kPositionLimit) {
        Throw(ErrorKind::kValue, "positions must be in [0, 2^30), got ", position);
      }
      flat_positions.push_back(static_cast<int32_t>(position));
    }
  }
  std::vector<StepRequest> requests;
  int64_t row = 0;
  for (size_t i = 0; i < seq_ids.size(); ++i) {
    StepRequest request;
    request.seq_id = seq_ids[i];
    request.append_length = append_lengths[i];
    if (masks.has_value() && masks.value()[i].has_value()) {
      request.mask = DecodeMask(masks.value()[i].value());
    }
    if (pending >= 0) request.pending = pending != 0;
    if (positions.has_value()) request.positions = flat_positions.data() + row;
    row += std::max<int64_t>(append_lengths[i], 0);
    requests.push_back(std::move(request));
  }
  cache->BeginForward(requests);
}

void EndForward(const PagedKVCache& cache) { cache->EndForward(); }
void AbortForward(const PagedKVCache& cache) { cache->AbortForward(); }
bool InForward(const PagedKVCache& cache) { return cache->InForward(); }

void DropPending(const PagedKVCache& cache, const ffi::Optional<ffi::Shape>& seq_ids) {
  std::optional<std::vector<int64_t>> ids;
  if (seq_ids.has_value()) ids.emplace(seq_ids.value().begin(), seq_ids.value().end());
  cache->DropPending(ids);
}

void Commit(const PagedKVCache& cache, const ffi::Shape& seq_ids,
            const ffi::Array<ffi::Shape>& kept, bool any_nodes) {
  std::vector<std::vector<int32_t>> nodes;
  for (const ffi::Shape& one : kept) {
    std::vector<int32_t>& indices = nodes.emplace_back();
    for (int64_t node : one) {
      if (node < 0 || node > INT32_MAX) {
        Throw(ErrorKind::kIndex, "kept node ", node, " is not in a pending region");
      }
      indices.push_back(static_cast<int32_t>(node));
    }
  }
  const std::vector<int64_t> ids(seq_ids.begin(), seq_ids.end());
  if (any_nodes) {
    cache->CommitAnyNodes(ids, nodes);
  } else {
    cache->Commit(ids, nodes);
  }
}

void PopN(const PagedKVCache& cache, int64_t seq_id, int64_t n) { cache->Pop(seq_id, n); }

void SetSlidingWindow(const PagedKVCache& cache, int64_t seq_id, int64_t size, int64_t sinks,
                      int64_t horizon, bool renumber_sinks) {
  cache->SetSlidingWindow(seq_id, size, sinks, horizon, renumber_sinks);
}

CacheCheckpoint MakeCheckpoint(const PagedKVCache& cache, int64_t seq_id) {
  return cache->MakeCheckpoint(seq_id);
}

void Rollback(const PagedKVCache& cache, int64_t seq_id, const CacheCheckpoint& checkpoint) {
  cache->Rollback(seq_id, checkpoint);
}

bool HasSequence(const PagedKVCache& cache, int64_t seq_id) { return cache->HasSequence(seq_id); }
ffi::Shape SequenceIds(const PagedKVCache& cache) {
  const std::vector<int64_t> ids = cache->SequenceIds();
  return ffi::Shape(ids.begin(), ids.end());
}
int64_t PendingLength(const PagedKVCache& cache, int64_t seq_id) {
  return cache->PendingLength(seq_id);
}
ffi::Shape PageIds(const PagedKVCache& cache, int64_t seq_id) {
  const std::vector<int64_t> pages = cache->PageIds(seq_id);
  return ffi::Shape(pages.begin(), pages.end());
}

void CheckScale(double sm_scale, double soft_cap) {
  if (!std::isfinite(static_cast<float>(sm_scale))) {
    Throw(ErrorKind::kValue, "sm_scale must be finite, got ", sm_scale);
  }
  if (!std::isfinite(static_cast<float>(soft_cap)) || soft_cap < 0) {
    Throw(ErrorKind::kValue, "soft_cap must be positive, or 0 for none, got ", soft_cap);
  }
}

/*! \brief A new tensor. On CUDA from TVM's pool: cudaMalloc and cudaFree would wait for the device
 * at every call. */
Tensor NewTensor(const ffi::Shape& shape, DLDataType dtype, DLDevice device) {
  using tvm::runtime::memory::AllocatorType;
  using tvm::runtime::memory::MemoryManager;
  if (!IsCuda(device)) return Tensor::Empty(shape, dtype, device);
  return MemoryManager::GetOrCreateAllocator(device, AllocatorType::kPooled)
      ->Empty(shape, dtype, device);
}

bool AttentionInPlace(const PagedKVCache& cache, int64_t layer, const Tensor& q, const Tensor& k,
                      const Tensor& v, const Tensor& out, double sm_scale, double soft_cap,
                      const ffi::Optional<Tensor>& alibi_slopes, const ffi::Optional<Tensor>& sinks,
                      const ffi::Optional<Tensor>& lse) {
  CheckScale(sm_scale, soft_cap);
  return cache->AttentionInPlace(layer, q, k, v, out, sm_scale,
                                 {soft_cap, alibi_slopes, sinks, lse, {}});
}

Tensor Attention(const PagedKVCache& cache, int64_t layer, const Tensor& qkv,
                 const ffi::Optional<Tensor>& out, double sm_scale, double soft_cap,
                 const ffi::Optional<Tensor>& alibi_slopes, const ffi::Optional<Tensor>& sinks,
                 const ffi::Optional<Tensor>& lse, const ffi::Optional<Tensor>& mass) {
  const PagedKVCacheConfig& config = cache->config();
  if (qkv->ndim < 1) Throw(ErrorKind::kValue, "qkv must have 3 dimensions, got 0");
  CheckScale(sm_scale, soft_cap);
  // A compiled model may pad its rows. A caller of this function has no reason to.
  if (cache->InForward()) {
    const int64_t rows = cache->GetQueryPositions()->shape[0];
    if (qkv->shape[0] != rows) {
      Throw(ErrorKind::kValue, "qkv has ", qkv->shape[0], " rows and the step has ", rows,
            " new tokens");
    }
  }
  Tensor result = out.has_value() ? out.value()
                                  : NewTensor({qkv->shape[0], config.num_qo_heads, config.head_dim},
                                              qkv->dtype, config.device);
  cache->Attention(layer, qkv, result, sm_scale, {soft_cap, alibi_slopes, sinks, lse, mass});
  return result;
}

void SetPageSelector(const PagedKVCache& cache, const ffi::Optional<ffi::Function>& select) {
  cache->SetPageSelector(select);
}

void SetObserver(const PagedKVCache& cache, const ffi::Optional<ffi::Function>& observer,
                 bool per_query_head, int64_t last_rows) {
  cache->SetObserver(observer, {per_query_head, last_rows});
}

ffi::Array<Tensor> GetKV(const PagedKVCache& cache, int64_t seq_id, int64_t begin, int64_t end) {
  const PagedKVCacheConfig& config = cache->config();
  const int64_t length = cache->GetSequenceLength(seq_id);
  if (end < 0) end = length;
  if (begin < 0 || begin > end || end > length) {
    Throw(ErrorKind::kIndex, "tokens [", begin, ", ", end, ") are not in sequence ", seq_id,
          ", which has ", length);
  }
  const ffi::Shape shape{config.num_layers, end - begin, config.num_kv_heads, config.head_dim};
  Tensor k = Tensor::Empty(shape, ValueDType(config.dtype), config.device);
  Tensor v = Tensor::Empty(shape, ValueDType(config.dtype), config.device);
  cache->DebugGetKV(seq_id, begin, end, k, v);
  return {k, v};
}

void PoisonUnused(const PagedKVCache& cache) { cache->PoisonUnused(); }

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef()
      .def("kvctl.cache.create", Guarded(Create), "Create a paged cache")
      .def("kvctl.cache.create_for_model", Guarded(CreateForModel),
           "Create a paged cache from within a compiled model")
      .def("kvctl.cache.create_with_windows", Guarded(CreateWithWindows),
           "The same, whose layers have windows of their own")
      .def("kvctl.cache.begin_forward", OnStream(BeginForward), "Begin a step under masks")
      .def("kvctl.cache.end_forward", OnStream(EndForward), "End the step in flight")
      .def("kvctl.cache.abort_forward", OnStream(AbortForward), "Take the step in flight back")
      .def("kvctl.cache.is_in_forward", Guarded(InForward), "Whether a step is in flight")
      .def("kvctl.cache.drop_pending", OnStream(DropPending), "Drop the sequences' pending nodes")
      .def("kvctl.cache.commit", OnStream(Commit), "Commit kept pending nodes, drop the others")
      .def("kvctl.cache.popn", OnStream(PopN), "Take back the last n tokens")
      .def("kvctl.cache.set_sliding_window", Guarded(SetSlidingWindow), "Give a sequence a window")
      .def("kvctl.cache.checkpoint", Guarded(MakeCheckpoint), "A point to roll back to")
      .def("kvctl.cache.rollback", OnStream(Rollback), "Return to a checkpoint")
      .def("kvctl.cache.has_sequence", Guarded(HasSequence), "Whether a sequence exists")
      .def("kvctl.cache.get_sequence_ids", Guarded(SequenceIds), "The ids of all sequences")
      .def("kvctl.cache.get_page_ids", Guarded(PageIds), "Pages of a sequence, -1 for evicted ones")
      .def("kvctl.cache.get_pending_length", Guarded(PendingLength), "Pending nodes of a sequence")
      .def("kvctl.cache.attend", OnStream(Attention), "Append a layer's K/V and attend")
      .def("kvctl.cache.attend_in_place", OnStream(AttentionInPlace),
           "Attention with q, k and v apart; false if they must be in one tensor")
      .def("kvctl.cache.set_page_selector", Guarded(SetPageSelector), "Choose pages by queries")
      .def("kvctl.cache.set_observer", Guarded(SetObserver), "Watch what attention gives to tokens")
      .def("kvctl.cache.get_kv", OnStream(GetKV), "K and V of a range of tokens")
      .def("kvctl.cache.get_config", Guarded(ConfigOf), "What a cache was created with")
      .def("kvctl.cache.debug_poison", OnStream(PoisonUnused), "Fill unused slots with NaN")
      .def("kvctl.cache.install", Guarded(InstallCache), "Put kvctl's cache behind TVM's function")
      .def("kvctl.cache.uninstall", Guarded(UninstallCache), "Put TVM's cache back")
      .def("kvctl.cache.is_installed", Guarded(CacheInstalled),
           "Whether kvctl's cache is installed");
}

}  // namespace kvctl
