// TVM's way of taking a sequence to another cache: metadata, and a group of pages for each layer.
#include <cstring>
#include <numeric>

#include "kvctl/error.h"
#include "runtime/cache/kv_checkpoint.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

using tvm::runtime::Tensor;

/*! \brief 0, 1, 2, ...: the slots of pages in order, the positions of a sequence. */
std::vector<int32_t> Count(int64_t count) {
  std::vector<int32_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

}  // namespace

int64_t PagedKVCacheImpl::LengthForExport(int64_t seq_id) const {
  const SequenceRecord record = table_.Record(seq_id, "page export");
  if (record.window.size > 0 || record.positions != nullptr) {
    Throw(ErrorKind::kNotImplemented, "page groups, TVM's format, have no place for the ",
          record.window.size > 0 ? "sliding window" : "positions, other than 0, 1, 2, ...,",
          " of sequence ", seq_id, "; save_sequence has");
  }
  return record.num_committed;
}

void PagedKVCacheImpl::CheckPageGroup(const Tensor& group, int64_t group_id, int64_t length) const {
  if (group_id < 0 || group_id >= config_.num_layers) {
    Throw(ErrorKind::kIndex, "page group ", group_id, " does not exist; the cache has one for each",
          " of its ", config_.num_layers, " layers");
  }
  const int64_t num_pages = (length + config_.page_size - 1) / config_.page_size;
  CheckTensor(group.operator->(), "a page group", config_.device,
              {1, num_pages, 2, config_.num_kv_heads, config_.page_size, config_.head_dim});
  if (group.DataType() != config_.dtype) {
    Throw(ErrorKind::kType, "a page group must be of the cache's type");
  }
}

PagedKVCacheImpl::String PagedKVCacheImpl::GetCheckpointMetadata(int64_t seq_id) const {
  return WithLock(
      [&] { return String(CheckpointMetadata(config_, seq_id, LengthForExport(seq_id))); });
}

PagedKVCacheImpl::String PagedKVCacheImpl::GetLayoutHash() const {
  return WithLock([&] { return String(LayoutHash(config_)); });
}

void PagedKVCacheImpl::ExportPageGroup(int64_t seq_id, int64_t group_id, Tensor dst) {
  WithLock([&] {
    RequireCpu(config_.device, "the export of page groups");
    LayoutHash(config_);  // refuses caches whose pages have none
    const int64_t length = LengthForExport(seq_id);
    CheckPageGroup(dst, group_id, length);
    const std::vector<int32_t> slots = Slots(seq_id, 0, length);
    Tensor kv = Tensor::Empty({2, length, config_.num_kv_heads, config_.head_dim}, config_.dtype,
                              config_.device);
    void* target = DataPointer(dst.operator->());
    std::memset(target, 0, dst->shape[1] * page_shape_.num_bytes());
    ReadLayer(group_id, slots, PartRows(kv, 0), PartRows(kv, 1));
    WriteSlotsCpu(page_shape_, target, Count(length).data(), length, PartRows(kv, 0),
                  PartRows(kv, 1));
  });
}

void PagedKVCacheImpl::PrepareImport(int64_t seq_id, String metadata_json) {
  WithLock([&] {
    RequireCpu(config_.device, "the import of page groups");
    const int64_t length = CheckCheckpointMetadata(config_, seq_id, metadata_json);
    if (seq_id < 0) Throw(ErrorKind::kValue, "a sequence id must not be negative, got ", seq_id);
    Import import{seq_id, length, std::vector<Tensor>(config_.num_layers)};
    table_.Clear();  // as TVM's cache does
    import_ = std::move(import);
  });
}

void PagedKVCacheImpl::ImportPageGroup(int64_t seq_id, int64_t group_id, Tensor src) {
  WithLock([&] {
    if (!import_.has_value() || import_->seq_id != seq_id) {
      Throw(ErrorKind::kRuntime, "no import of sequence ", seq_id, " has been prepared");
    }
    CheckPageGroup(src, group_id, import_->length);
    if (import_->layers[group_id].defined()) {
      Throw(ErrorKind::kValue, "page group ", group_id, " has been imported already");
    }
    const int64_t length = import_->length;
    Tensor kv = Tensor::Empty({2, length, config_.num_kv_heads, config_.head_dim}, config_.dtype,
                              config_.device);
    ReadSlotsCpu(page_shape_, DataPointer(src.operator->()), Count(length).data(), length,
                 PartRows(kv, 0), PartRows(kv, 1));
    import_->layers[group_id] = kv;
  });
}

void PagedKVCacheImpl::FinishImport(int64_t seq_id) {
  WithLock([&] {
    if (!import_.has_value() || import_->seq_id != seq_id) {
      Throw(ErrorKind::kRuntime, "no import of sequence ", seq_id, " has been prepared");
    }
    for (size_t group = 0; group < import_->layers.size(); ++group) {
      if (!import_->layers[group].defined()) {
        Throw(ErrorKind::kValue, "page group ", group, " of sequence ", seq_id,
              " has not been imported");
      }
    }
    const std::vector<int32_t> positions = Count(import_->length);
    std::vector<Tensor> rotated(config_.num_layers);
    for (size_t layer = 0; layer < plain_keys_.size(); ++layer) {
      rotated[layer] = RotatedKeys(positions, PartRows(import_->layers[layer], 0));
    }
    SequenceRecord record;
    record.num_committed = record.next_position = static_cast<int32_t>(import_->length);
    table_.Restore(seq_id, record);
    const std::vector<int32_t> slots = Slots(seq_id, 0, import_->length);
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      const Tensor& kv = import_->layers[layer];
      WriteLayer(layer, slots, PartRows(kv, 0), PartRows(kv, 1), rotated[layer]);
    }
    import_.reset();
  });
}

}  // namespace kvctl
