// Sequences in TVM's form: metadata, and a group of pages for each layer.
#include <cstring>
#include <numeric>

#include "kvctl/error.h"
#include "runtime/cache/transfer/sequence_transfer.h"
#include "runtime/cache/transfer/transfer_metadata.h"
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

int64_t SequenceTransfer::LengthForExport(int64_t seq_id) const {
  const SequenceRecord record = table_.Record(seq_id, "page export");
  if (record.window.size > 0 || record.positions != nullptr) {
    Throw(ErrorKind::kNotImplemented, "page groups, TVM's format, have no place for the ",
          record.window.size > 0 ? "sliding window" : "positions, other than 0, 1, 2, ...,",
          " of sequence ", seq_id, "; save_sequence has");
  }
  return record.num_committed;
}

void SequenceTransfer::CheckPageGroup(const Tensor& group, int64_t group_id, int64_t length) const {
  if (group_id < 0 || group_id >= config_.num_layers) {
    Throw(ErrorKind::kIndex, "page group ", group_id, " does not exist; the cache has one for each",
          " of its ", config_.num_layers, " layers");
  }
  const int64_t num_pages = (length + config_.page_size - 1) / config_.page_size;
  CheckTensor(group.operator->(), "a page group", config_.device,
              {1, num_pages, 2, config_.num_kv_heads, config_.page_size,
               PageShapeOf(config_).row_elements()});
  if (group.DataType() != config_.dtype) {
    Throw(ErrorKind::kType, "a page group must be of the cache's type");
  }
}

std::string SequenceTransfer::Metadata(int64_t seq_id) const {
  return TransferMetadata(config_, seq_id, LengthForExport(seq_id));
}

void SequenceTransfer::ExportPageGroup(int64_t seq_id, int64_t group_id,
                                       const Tensor& target) const {
  backend_.Require(CacheFeature::kPageGroupExport);
  LayoutHash(config_);  // refuses caches whose pages have none
  const int64_t length = LengthForExport(seq_id);
  CheckPageGroup(target, group_id, length);
  const std::vector<int32_t> slots = Slots(seq_id, 0, length);
  const PageShape shape = PageShapeOf(config_);
  Tensor kv = Tensor::Empty({2, length, config_.num_kv_heads, shape.row_elements()}, config_.dtype,
                            config_.device);
  void* pages = DataPointer(target.operator->());
  std::memset(pages, 0, target->shape[1] * shape.num_bytes());
  backend_.ReadSlots(group_id, slots, PartRows(kv, 0), PartRows(kv, 1));
  WriteSlotsCpu(shape, pages, Count(length).data(), length, PartRows(kv, 0), PartRows(kv, 1));
}

void SequenceTransfer::PrepareImport(int64_t seq_id, const std::string& metadata) {
  backend_.Require(CacheFeature::kPageGroupImport);
  const int64_t length = CheckTransferMetadata(config_, seq_id, metadata);
  if (seq_id < 0) Throw(ErrorKind::kValue, "a sequence id must not be negative, got ", seq_id);
  Import import{seq_id, length, std::vector<Tensor>(config_.num_layers)};
  table_.Clear();  // as TVM's cache does
  import_ = std::move(import);
}

SequenceTransfer::Import& SequenceTransfer::ImportOf(int64_t seq_id) {
  if (!import_.has_value() || import_->seq_id != seq_id) {
    Throw(ErrorKind::kRuntime, "no import of sequence ", seq_id, " has been prepared");
  }
  return *import_;
}

void SequenceTransfer::ImportPageGroup(int64_t seq_id, int64_t group_id, const Tensor& source) {
  Import& import = ImportOf(seq_id);
  CheckPageGroup(source, group_id, import.length);
  if (import.layers[group_id].defined()) {
    Throw(ErrorKind::kValue, "page group ", group_id, " has been imported already");
  }
  const PageShape shape = PageShapeOf(config_);
  Tensor kv = Tensor::Empty({2, import.length, config_.num_kv_heads, shape.row_elements()},
                            config_.dtype, config_.device);
  ReadSlotsCpu(shape, DataPointer(source.operator->()), Count(import.length).data(), import.length,
               PartRows(kv, 0), PartRows(kv, 1));
  import.layers[group_id] = kv;
}

void SequenceTransfer::FinishImport(int64_t seq_id) {
  const Import& import = ImportOf(seq_id);
  for (size_t group = 0; group < import.layers.size(); ++group) {
    if (!import.layers[group].defined()) {
      Throw(ErrorKind::kValue, "page group ", group, " of sequence ", seq_id,
            " has not been imported");
    }
  }
  const bool is_inline = config_.rope_mode == RopeMode::kInline;
  const std::vector<int32_t> positions = Count(import.length);
  std::vector<Tensor> rotated;
  for (int64_t layer = 0; is_inline && layer < config_.num_layers; ++layer) {
    rotated.push_back(rotator_.RotateKeys(positions, PartRows(import.layers[layer], 0)));
  }
  SequenceRecord record;
  record.num_committed = record.next_position = static_cast<int32_t>(import.length);
  table_.Restore(seq_id, record);
  const std::vector<int32_t> slots = Slots(seq_id, 0, import.length);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const KVRows k = PartRows(import.layers[layer], 0), v = PartRows(import.layers[layer], 1);
    backend_.WriteSlots(layer, slots, is_inline ? PartRows(rotated[layer], 0) : k, v,
                        is_inline ? k : KVRows{});
  }
  import_.reset();
}

}  // namespace kvctl
