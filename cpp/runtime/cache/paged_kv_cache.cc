// Creation, sequences and queries of the paged cache.
#include <sys/mman.h>
#include <tvm/ffi/cast.h>

#include <algorithm>
#include <limits>

#include "kvctl/error.h"
#include "runtime/cache/cache_checkpoint.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

void RequirePositive(int64_t value, const char* name) {
  if (value < 1) Throw(ErrorKind::kValue, name, " must be at least 1, got ", value);
}

/*! \brief Checks a configuration before anything is allocated for it. */
const PagedKVCacheConfig& Validated(const PagedKVCacheConfig& config) {
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
  const double bytes = 2.0 * config.dtype.bits / 8 * config.head_dim * config.num_kv_heads *
                       config.page_size * config.num_pages * config.num_layers;
  RequireMemory(config.device, bytes, "the cache");
  if (IsCuda(config.device)) {
    CudaKernels();
    if (config.rope_mode == RopeMode::kInline) RequireCpu(config.device, "inline RoPE");
  } else if (!IsCpu(config.device)) {
    Throw(ErrorKind::kNotImplemented, "kvctl has cache kernels for the CPU and for CUDA only");
  } else if (config.device.device_id != 0) {
    Throw(ErrorKind::kValue, "the CPU is device 0, got ", config.device.device_id);
  }
  if (!config.layer_windows.empty() &&
      static_cast<int64_t>(config.layer_windows.size()) != config.num_layers) {
    Throw(ErrorKind::kValue, "layer_windows names ", config.layer_windows.size(),
          " layers and the cache has ", config.num_layers);
  }
  for (int32_t window : config.layer_windows) {
    if (window < 0) Throw(ErrorKind::kValue, "a layer's window must not be negative, got ", window);
  }
  FloatDType(config.dtype, "the cache's dtype");
  return config;
}

TableConfig ToTableConfig(const PagedKVCacheConfig& config) {
  return {static_cast<int32_t>(config.num_pages), static_cast<int32_t>(config.page_size),
          static_cast<int32_t>(config.prefill_chunk_size),
          static_cast<int32_t>(config.max_sequences)};
}

PageShape ToPageShape(const PagedKVCacheConfig& config) {
  return {static_cast<int32_t>(config.num_kv_heads), static_cast<int32_t>(config.page_size),
          static_cast<int32_t>(config.head_dim), FloatDType(config.dtype, "the cache's dtype")};
}

/*!
 * \brief Wishes for huge pages of memory: attention walks through all of a cache, and two threads
 * read it a quarter faster where fewer pages have to be looked up.
 */
void PreferHugePages(const tvm::runtime::Tensor& tensor) {
  if (tensor->device.device_type != kDLCPU) return;
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(DataPointer(tensor.operator->()));
  const uintptr_t end = begin + tvm::ffi::GetDataSize(*tensor.operator->());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = end / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

}  // namespace

PagedKVCache PagedKVCache::Create(const PagedKVCacheConfig& config) {
  return Guard([&] { return PagedKVCache(tvm::ffi::make_object<PagedKVCacheImpl>(config)); });
}

PagedKVCacheImpl::PagedKVCacheImpl(const PagedKVCacheConfig& config)
    : config_(Validated(config)),
      page_shape_(ToPageShape(config)),
      table_(ToTableConfig(config)),
      plain_key_shape_(page_shape_) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    pages_.push_back(
        Tensor::Empty({config.num_pages, 2, config.num_kv_heads, config.page_size, config.head_dim},
                      config.dtype, config.device));
    PreferHugePages(pages_.back());
  }
  plain_key_shape_.num_parts = 1;
  for (int64_t layer = 0; config.rope_mode == RopeMode::kInline && layer < config.num_layers;
       ++layer) {
    plain_keys_.push_back(
        Tensor::Empty({config.num_pages, 1, config.num_kv_heads, config.page_size, config.head_dim},
                      config.dtype, config.device));
  }
  CreateRotation(&step_rotation_);
  CreateOnCuda();
}

void PagedKVCacheImpl::Discard(CheckpointPtr checkpoint) const {
  {
    std::lock_guard<std::mutex> lock(discarded_mutex_);
    discarded_.push_back(std::move(checkpoint));
  }
  // A cache in use must not be touched; its next caller destroys the checkpoint.
  const ExclusiveScope scope(&busy_);
  if (scope.entered()) DestroyDiscarded();
}

void PagedKVCacheImpl::DestroyDiscarded() const {
  std::lock_guard<std::mutex> lock(discarded_mutex_);
  discarded_.clear();
}

void PagedKVCacheImpl::Clear() {
  WithLock([&] {
    table_.Clear();
    import_.reset();
  });
}

void PagedKVCacheImpl::AddSequence(int64_t seq_id) {
  WithLock([&] { table_.Add(seq_id); });
}

void PagedKVCacheImpl::RemoveSequence(int64_t seq_id) {
  WithLock([&] { table_.Remove(seq_id); });
}

void PagedKVCacheImpl::ForkSequence(int64_t parent, int64_t child, int64_t position) {
  WithLock([&] { table_.Fork(parent, child, position); });
}

void PagedKVCacheImpl::PopN(int64_t seq_id, int32_t n) { Pop(seq_id, n); }

void PagedKVCacheImpl::Pop(int64_t seq_id, int64_t n) {
  WithLock([&] { table_.PopN(seq_id, n); });
}

void PagedKVCacheImpl::EnableSlidingWindowForSeq(int64_t seq_id, int32_t window_size,
                                                 int32_t sinks) {
  WithLock([&] {
    if (sinks < 0 || sinks >= window_size) {
      Throw(ErrorKind::kValue, "attention sinks must be at least 0 and fewer than the window of ",
            window_size, " tokens, got ", sinks);
    }
    // TVM counts the sinks as part of the window, and the token itself not: it sees that many
    // before it.
    SlidingWindow window = MakeWindow(int64_t{window_size} - sinks + 1, sinks, kDefaultHorizon,
                                      config_.rope_mode != RopeMode::kNone);
    window.reports_held_length = true;
    table_.SetWindow(seq_id, window);
  });
}

SlidingWindow PagedKVCacheImpl::MakeWindow(int64_t size, int64_t sinks, int64_t horizon,
                                           bool renumber_sinks) const {
  if (renumber_sinks && config_.rope_mode == RopeMode::kNone) {
    Throw(ErrorKind::kValue, "this cache does not rotate keys, so it cannot renumber sinks");
  }
  constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
  SlidingWindow window;
  window.size = static_cast<int32_t>(std::clamp<int64_t>(size, -1, kMaxInt));
  window.sinks = static_cast<int32_t>(std::clamp<int64_t>(sinks, -1, kMaxInt));
  window.horizon = static_cast<int32_t>(std::clamp<int64_t>(horizon, -1, kMaxInt));
  window.renumber_sinks = renumber_sinks;
  return window;
}

void PagedKVCacheImpl::SetSlidingWindow(int64_t seq_id, int64_t size, int64_t sinks,
                                        int64_t horizon, bool renumber_sinks) {
  WithLock([&] { table_.SetWindow(seq_id, MakeWindow(size, sinks, horizon, renumber_sinks)); });
}

void PagedKVCacheImpl::SetDefaultWindow(int64_t size, int64_t sinks, int64_t horizon,
                                        bool renumber_sinks) {
  WithLock([&] { table_.SetDefaultWindow(MakeWindow(size, sinks, horizon, renumber_sinks)); });
}

void PagedKVCacheImpl::DropPending(int64_t seq_id) {
  WithLock([&] { table_.DropPending(seq_id); });
}

void PagedKVCacheImpl::DropPending(const std::optional<std::vector<int64_t>>& seq_ids) {
  WithLock([&] { table_.DropPending(seq_ids.has_value() ? *seq_ids : table_.SequenceIds()); });
}

CacheCheckpoint PagedKVCacheImpl::MakeCheckpoint(int64_t seq_id) {
  return WithLock([&] {
    return CacheCheckpoint(tvm::ffi::make_object<CacheCheckpointImpl>(
        tvm::ffi::GetRef<PagedKVCache>(this), table_.MakeCheckpoint(seq_id)));
  });
}

void PagedKVCacheImpl::Rollback(int64_t seq_id, const CacheCheckpoint& checkpoint) {
  WithLock([&] {
    const auto* impl = checkpoint.as<CacheCheckpointImpl>();
    if (impl == nullptr) Throw(ErrorKind::kType, "rollback needs a checkpoint of this cache");
    table_.Rollback(seq_id, impl->checkpoint());
  });
}

bool PagedKVCacheImpl::Empty() const {
  return WithLock([&] { return table_.num_sequences() == 0; });
}

int32_t PagedKVCacheImpl::GetNumAvailablePages() const {
  return WithLock([&] { return table_.pool().num_free(); });
}

int32_t PagedKVCacheImpl::GetTotalSequenceLength() const {
  return WithLock([&] { return static_cast<int32_t>(table_.total_reported_length()); });
}

int32_t PagedKVCacheImpl::GetSequenceLength(int64_t seq_id) const {
  return WithLock([&] { return table_.Get(seq_id).reported_length(); });
}

int64_t PagedKVCacheImpl::PendingLength(int64_t seq_id) const {
  return WithLock([&] { return int64_t{table_.Get(seq_id).pending.size()}; });
}

bool PagedKVCacheImpl::HasSequence(int64_t seq_id) const {
  return WithLock([&] { return table_.Contains(seq_id); });
}

bool PagedKVCacheImpl::HasWindow(int64_t seq_id) const {
  return WithLock([&] { return table_.Get(seq_id).window.size > 0; });
}

std::vector<int64_t> PagedKVCacheImpl::SequenceIds() const {
  return WithLock([&] { return table_.SequenceIds(); });
}

bool PagedKVCacheImpl::InForward() const {
  return WithLock([&] { return table_.in_forward(); });
}

CacheCheckpointImpl::~CacheCheckpointImpl() {
  static_cast<const PagedKVCacheImpl*>(cache_.get())->Discard(std::move(checkpoint_));
}

}  // namespace kvctl
