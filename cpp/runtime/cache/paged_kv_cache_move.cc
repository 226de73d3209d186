// Eviction, and sequences that leave the paged cache and come to another.
#include <algorithm>
#include <cstring>

#include "core/support/narrow.h"
#include "kvctl/error.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

using tvm::runtime::Tensor;

constexpr DLDevice kHost{kDLCPU, 0};

SequenceRecord ToRecord(const SavedSequence& saved) {
  SequenceRecord record;
  record.num_committed = Narrow(saved.length, "length");
  record.next_position = Narrow(saved.next_position, "next_position");
  record.window = {Narrow(saved.window_size, "window_size"), Narrow(saved.sinks, "sinks"),
                   Narrow(saved.horizon, "horizon"), saved.renumber_sinks,
                   saved.reports_held_length};
  record.evicted = {Narrow(saved.evicted_begin, "evicted_begin"),
                    Narrow(saved.evicted_end, "evicted_end")};
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

void PagedKVCacheImpl::Evict(int64_t seq_id, const std::vector<int32_t>& keep, bool rerotate) {
  WithLock([&] {
    if (rerotate) CheckRotatesKeys("evict with rerotate=True");
    const Sequence& sequence = table_.Get(seq_id);
    std::vector<int32_t> columns = keep;
    if (sequence.window.reports_held_length) {  // the i-th token is the i-th of those that count
      for (int32_t& token : columns) {
        if (token >= sequence.reported_length()) {
          Throw(ErrorKind::kIndex, "kept token ", token, " is not in sequence ", seq_id,
                ", which has ", sequence.reported_length());
        }
        token = sequence.KvIndexOf(token);
      }
    }
    // A function of the model library may throw, so it has its say before anything changes.
    const bool in_place = step_rotation_.table != nullptr && plain_keys_.empty();
    std::vector<Tensor> turned;
    if (rerotate && !in_place) turned = RotatedKeptKeys(seq_id, columns);
    moves_.clear();
    table_.Evict(seq_id, columns, rerotate, &moves_);
    ApplyCopies();
    if (in_place) return RotateKeys(moves_.rotations);
    WriteRotatedKeys(turned);
  });
}

SavedSequence PagedKVCacheImpl::SaveSequence(int64_t seq_id) const {
  return WithLock([&] {
    const SequenceRecord record = table_.Record(seq_id, "save_sequence");
    SavedSequence saved;
    saved.length = record.num_committed;
    saved.next_position = record.next_position;
    saved.window_size = record.window.size;
    saved.sinks = record.window.sinks;
    saved.horizon = record.window.horizon;
    saved.renumber_sinks = record.window.renumber_sinks;
    saved.reports_held_length = record.window.reports_held_length;
    saved.evicted_begin = record.evicted.begin;
    saved.evicted_end = record.evicted.end;
    if (record.positions != nullptr) {
      Tensor positions = Tensor::Empty({saved.length}, {kDLInt, 32, 1}, kHost);
      std::copy(record.positions->begin(), record.positions->end(),
                static_cast<int32_t*>(DataPointer(positions.operator->())));
      saved.positions = positions;
    }
    const std::vector<int32_t> slots = HeldSlots(seq_id);
    const Shape shape{config_.num_layers, static_cast<int64_t>(slots.size()), config_.num_kv_heads,
                      config_.head_dim};
    saved.k = Tensor::Empty(shape, config_.dtype, config_.device);
    saved.v = Tensor::Empty(shape, config_.dtype, config_.device);
    ReadSlots(slots, saved.k, saved.v);
    return saved;
  });
}

void PagedKVCacheImpl::LoadSequence(int64_t seq_id, const SavedSequence& saved) {
  WithLock([&] {
    const SequenceRecord record = ToRecord(saved);
    const int64_t gone = std::max<int64_t>(int64_t{record.evicted.end} - record.evicted.begin, 0);
    CheckKV(saved.k, "k", record.num_committed - gone);
    CheckKV(saved.v, "v", record.num_committed - gone);
    if (saved.k.DataType() != config_.dtype || saved.v.DataType() != config_.dtype) {
      Throw(ErrorKind::kType, "k and v must be of the cache's type");
    }
    table_.Restore(seq_id, record);
    try {
      const std::vector<int32_t> slots = HeldSlots(seq_id);
      std::vector<int32_t> positions;
      for (int32_t column = 0; column < record.num_committed; ++column) {
        if (record.evicted.begin <= column && column < record.evicted.end) continue;
        positions.push_back(record.positions ? (*record.positions)[column] : column);
      }
      WriteSlots(slots, positions, saved.k, saved.v);
    } catch (...) {  // a model library's rotation, out of host memory
      table_.Remove(seq_id);
      throw;
    }
  });
}

}  // namespace kvctl
