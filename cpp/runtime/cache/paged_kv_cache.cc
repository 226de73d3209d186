// Creation, sequences and queries of the paged cache.
#include <tvm/ffi/cast.h>

#include "kvctl/error.h"
#include "runtime/cache/cache_checkpoint.h"
#include "runtime/cache/cache_config.h"
#include "runtime/cache/paged_kv_cache_impl.h"

namespace kvctl {

PagedKVCache PagedKVCache::Create(const PagedKVCacheConfig& config) {
  return Guard([&] { return PagedKVCache(tvm::ffi::make_object<PagedKVCacheImpl>(config)); });
}

PagedKVCacheImpl::PagedKVCacheImpl(const PagedKVCacheConfig& config)
    : config_(CheckedConfig(config)),
      table_(ToTableConfig(config_)),
      rotator_(config_),
      hooks_(config_),
      step_(config_, &table_),
      backend_(CacheBackend::Create(config_, &rotator_, &hooks_)),
      transfer_(config_, &table_, backend_.get(), &rotator_) {}

void PagedKVCacheImpl::Discard(CheckpointPtr checkpoint) const {
  {
    std::lock_guard<std::mutex> lock(discarded_mutex_);
    discarded_.push_back(std::move(checkpoint));
    has_discarded_.store(true, std::memory_order_release);
  }
  // A cache in use must not be touched; its next caller destroys the checkpoint.
  const ExclusiveScope scope(&user_);
  if (scope.entered()) DestroyDiscarded();
}

void PagedKVCacheImpl::DestroyDiscarded() const {
  if (!has_discarded_.load(std::memory_order_acquire)) return;
  std::lock_guard<std::mutex> lock(discarded_mutex_);
  has_discarded_.store(false, std::memory_order_relaxed);
  discarded_.clear();
}

void PagedKVCacheImpl::Clear() {
  WithLock([&] {
    table_.Clear();
    partner_.End();
    transfer_.CancelImport();
  });
}

void PagedKVCacheImpl::AddSequence(int64_t seq_id) {
  WithLock([&] { table_.Add(seq_id); });
}

void PagedKVCacheImpl::RemoveSequence(int64_t seq_id) {
  WithLock([&] { table_.Remove(seq_id); }, WhenBusy::kWait);
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
  // -1 is what model libraries say for no sinks; TVM's callers replace it by 0 before they call.
  const int32_t count = sinks == -1 ? 0 : sinks;
  WithLock([&] { table_.SetWindow(seq_id, MakeTvmWindow(config_, window_size, count)); });
}

void PagedKVCacheImpl::SetSlidingWindow(int64_t seq_id, int64_t size, int64_t sinks,
                                        int64_t horizon, bool renumber_sinks) {
  WithLock(
      [&] { table_.SetWindow(seq_id, MakeWindow(config_, size, sinks, horizon, renumber_sinks)); });
}

void PagedKVCacheImpl::SetDefaultWindow(int64_t size, int64_t sinks, int64_t horizon,
                                        bool renumber_sinks) {
  WithLock(
      [&] { table_.SetDefaultWindow(MakeWindow(config_, size, sinks, horizon, renumber_sinks)); });
}

void PagedKVCacheImpl::DropPending(int64_t seq_id) {
  WithLock([&] { table_.DropPending(seq_id); }, WhenBusy::kWait);
}

void PagedKVCacheImpl::DropPending(const std::optional<std::vector<int64_t>>& seq_ids) {
  WithLock([&] { table_.DropPending(seq_ids.has_value() ? *seq_ids : table_.SequenceIds()); },
           WhenBusy::kWait);
}

void PagedKVCacheImpl::Evict(int64_t seq_id, const std::vector<int32_t>& keep, bool rerotate) {
  WithLock([&] { EvictTokens({table_, *backend_, rotator_, copies_}, seq_id, keep, rerotate); });
}

CacheCheckpoint PagedKVCacheImpl::MakeCheckpoint(int64_t seq_id) {
  return WithLock([&] {
    return CacheCheckpoint(tvm::ffi::make_object<CacheCheckpointImpl>(
        tvm::ffi::GetRef<PagedKVCache>(this), table_.MakeCheckpoint(seq_id)));
  });
}

void PagedKVCacheImpl::Rollback(int64_t seq_id, const CacheCheckpoint& checkpoint) {
  WithLock(
      [&] {
        const auto* impl = checkpoint.as<CacheCheckpointImpl>();
        if (impl == nullptr) Throw(ErrorKind::kType, "rollback needs a checkpoint of this cache");
        table_.Rollback(seq_id, impl->checkpoint());
      },
      WhenBusy::kWait);
}

CacheCheckpointImpl::~CacheCheckpointImpl() {
  static_cast<const PagedKVCacheImpl*>(cache_.get())->Discard(std::move(checkpoint_));
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

std::vector<int64_t> PagedKVCacheImpl::PageIds(int64_t seq_id) const {
  return WithLock([&] {
    const std::vector<int32_t>& pages = table_.Get(seq_id).pages;
    return std::vector<int64_t>(pages.begin(), pages.end());
  });
}

bool PagedKVCacheImpl::HasSequence(int64_t seq_id) const {
  return WithLock([&] { return table_.Contains(seq_id); }, WhenBusy::kWait);
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

int64_t PagedKVCacheImpl::KVLength(int64_t seq_id) const {
  return WithLock([&] {
    const Sequence& sequence = table_.Get(seq_id);
    // Sequences learn of a step's tokens when it ends; its plan points to the pages of each.
    for (const SequencePlan& entry : table_.plan().sequences) {
      if (table_.in_forward() && entry.pages == sequence.pages.data()) {
        return int64_t{entry.kv_len()};
      }
    }
    return int64_t{sequence.kv_len()};
  });
}

tvm::runtime::Tensor PagedKVCacheImpl::LayerPages(int64_t layer) {
  return WithLock([&] {
    if (layer < 0 || layer >= config_.num_layers) {
      Throw(ErrorKind::kIndex, "layer ", layer, " is not in a cache of ", config_.num_layers,
            " layers");
    }
    return backend_->LayerPages(layer);
  });
}

void PagedKVCacheImpl::ForgetGraphs() {
  WithLock([&] { backend_->ForgetGraphs(); });
}

GraphState PagedKVCacheImpl::ReadGraphState() const {
  return WithLock([&] { return backend_->ReadGraphState(); });
}

UploadState PagedKVCacheImpl::ReadUploads() const {
  return WithLock(
      [&] { return backend_->ReadUploads(table_.in_forward() ? &table_.plan() : nullptr); });
}

int64_t PagedKVCacheImpl::CountSaturated() const {
  return WithLock([&] { return backend_->CountSaturated(); });
}

void PagedKVCacheImpl::PoisonUnused() {
  WithLock([&] {
    const std::vector<int32_t> held = table_.CountReferences();
    for (int32_t page = 0; page < table_.pool().size(); ++page) {
      if (table_.pool().ref_count(page) == held[page]) continue;
      Throw(ErrorKind::kInternal, "page ", page, " is held ", held[page], " times and counted ",
            table_.pool().ref_count(page), " times");
    }
    const std::vector<bool> used = table_.UsedSlots();
    std::vector<int32_t> unused;
    for (size_t slot = 0; slot < used.size(); ++slot) {
      if (!used[slot]) unused.push_back(static_cast<int32_t>(slot));
    }
    backend_->PoisonSlots(unused);
  });
}

}  // namespace kvctl
