// Eviction, and sequences that leave the paged cache and come to another.
#include <algorithm>
#include <cstring>

#include "kvctl/error.h"
#include "runtime/paged_kv_cache_impl.h"
#include "runtime/tensor_view.h"

namespace kvctl {
namespace {

using tvm::runtime::Tensor;

constexpr DLDevice kHost{kDLCPU, 0};
// Rows of cosines and sines that are made at a time.
constexpr int32_t kTurnBlock = 1024;

int32_t Narrow(int64_t value) {
  return static_cast<int32_t>(std::clamp<int64_t>(value, INT32_MIN, INT32_MAX));
}

SequenceRecord ToRecord(const SavedSequence& saved) {
  SequenceRecord record;
  record.num_committed = Narrow(saved.length);
  record.next_position = Narrow(saved.next_position);
  record.window = {Narrow(saved.window_size), Narrow(saved.sinks), Narrow(saved.horizon)};
  record.gone = {Narrow(saved.gone_begin), Narrow(saved.gone_end)};
  if (saved.positions.has_value()) {
    const DLTensor* positions = saved.positions.value().operator->();
    CheckTensor(positions, "positions", kHost, {saved.length});
    if (positions->dtype.code != kDLInt || positions->dtype.bits != 32) {
      Throw(ErrorKind::kType, "positions must be int32");
    }
    const auto* data = static_cast<const int32_t*>(DataPointer(positions));
    record.positions = std::make_shared<std::vector<int32_t>>(data, data + saved.length);
  }
  return record;
}

}  // namespace

RopeParams PagedKVCacheImpl::KeyRotation(const char* operation) const {
  if (config_.rope_mode == RopeMode::kNone) {
    Throw(ErrorKind::kNotImplemented, operation,
          " turns keys that the cache has rotated; this cache takes keys as they come (it was "
          "created without rope)");
  }
  if (rope_ != nullptr) return rope_->params();
  if (config_.rope_mode == RopeMode::kInline && !config_.rope_ext_factors.has_value()) {
    RopeParams params;  // TVM's own attention kernels rotate by these, whatever the library brings
    params.theta = static_cast<float>(config_.rope_theta);
    params.scale = static_cast<float>(config_.rope_scale);
    params.rotary_dim = page_shape_.head_dim;
    return params;
  }
  Throw(ErrorKind::kNotImplemented, operation,
        " turns keys by the frequencies they were rotated with; this cache rotates with a function "
        "of the model library, which does not tell them");
}

void PagedKVCacheImpl::TurnKeys(const std::vector<KeyTurn>& turns, RopeTable* table) {
  std::vector<int32_t> slots, by;
  for (size_t begin = 0; begin < turns.size(); begin += kTurnBlock) {
    const size_t end = std::min(begin + kTurnBlock, turns.size());
    slots.clear();
    by.clear();
    for (size_t i = begin; i < end; ++i) {
      slots.push_back(turns[i].slot);
      by.push_back(turns[i].by);
    }
    table->Fill(by.data(), static_cast<int32_t>(by.size()));
    for (Tensor& pages : pages_) {
      RopeSlotsCpu(*table, page_shape_, DataPointer(pages.operator->()), slots.data());
    }
  }
}

void PagedKVCacheImpl::Evict(int64_t seq_id, const std::vector<int32_t>& keep, bool rerotate) {
  InTurn([&] {
    std::optional<RopeTable> table;
    if (rerotate) table.emplace(KeyRotation("evict with rerotate=True"));
    moves_.clear();
    table_.Evict(seq_id, keep, rerotate, &moves_);
    CarryOut();
    if (rerotate) TurnKeys(moves_.turns, &*table);
  });
}

SavedSequence PagedKVCacheImpl::SaveSequence(int64_t seq_id) const {
  return InTurn([&] {
    const SequenceRecord record = table_.Record(seq_id, "save_sequence");
    SavedSequence saved;
    saved.length = record.num_committed;
    saved.next_position = record.next_position;
    saved.window_size = record.window.size;
    saved.sinks = record.window.sinks;
    saved.horizon = record.window.horizon;
    saved.gone_begin = record.gone.begin;
    saved.gone_end = record.gone.end;
    if (record.positions != nullptr) {
      Tensor positions = Tensor::Empty({saved.length}, {kDLInt, 32, 1}, kHost);
      std::copy(record.positions->begin(), record.positions->end(),
                static_cast<int32_t*>(DataPointer(positions.operator->())));
      saved.positions = positions;
    }
    std::vector<int32_t> slots = Slots(seq_id, 0, record.gone.begin);
    const std::vector<int32_t> rest = Slots(seq_id, record.gone.end, saved.length);
    slots.insert(slots.end(), rest.begin(), rest.end());
    const Shape shape{config_.num_layers, static_cast<int64_t>(slots.size()), config_.num_kv_heads,
                      config_.head_dim};
    saved.k = Tensor::Empty(shape, config_.dtype, config_.device);
    saved.v = Tensor::Empty(shape, config_.dtype, config_.device);
    ReadSlots(slots, saved.k, saved.v);
    return saved;
  });
}

void PagedKVCacheImpl::LoadSequence(int64_t seq_id, const SavedSequence& saved) {
  InTurn([&] {
    const SequenceRecord record = ToRecord(saved);
    const int64_t gone = std::max<int64_t>(int64_t{record.gone.end} - record.gone.begin, 0);
    CheckKV(saved.k, "k", record.num_committed - gone);
    CheckKV(saved.v, "v", record.num_committed - gone);
    if (saved.k.DataType() != config_.dtype || saved.v.DataType() != config_.dtype) {
      Throw(ErrorKind::kType, "k and v must be of the cache's type");
    }
    table_.Restore(seq_id, record);
    std::vector<int32_t> slots = Slots(seq_id, 0, record.gone.begin);
    const std::vector<int32_t> rest = Slots(seq_id, record.gone.end, record.num_committed);
    slots.insert(slots.end(), rest.begin(), rest.end());
    WriteSlots(slots, saved.k, saved.v);
  });
}

}  // namespace kvctl
