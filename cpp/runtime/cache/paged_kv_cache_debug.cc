// Looking into the paged cache, and setting its contents.
#include "kvctl/error.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

std::vector<int32_t> PagedKVCacheImpl::Slots(int64_t seq_id, int64_t begin, int64_t end) const {
  const Sequence& sequence = table_.Get(seq_id);
  if (begin < 0 || begin > end || end > sequence.reported_length()) {
    Throw(ErrorKind::kIndex, "tokens [", begin, ", ", end, ") are not in sequence ", seq_id,
          ", which has ", sequence.reported_length());
  }
  std::vector<int32_t> slots;
  slots.reserve(end - begin);
  for (int64_t i = begin; i < end; ++i) {
    const int32_t column = sequence.KvIndexOf(static_cast<int32_t>(i));
    if (sequence.evicted.begin <= column && column < sequence.evicted.end) {
      Throw(ErrorKind::kIndex, "token ", column, " of sequence ", seq_id,
            " has been let go by its sliding window");
    }
    slots.push_back(table_.Slot(sequence, column));
  }
  return slots;
}

std::vector<int32_t> PagedKVCacheImpl::HeldSlots(int64_t seq_id) const {
  const Sequence& sequence = table_.Get(seq_id);
  std::vector<int32_t> slots;
  for (int32_t column = 0; column < sequence.num_committed; ++column) {
    const bool gone = sequence.evicted.begin <= column && column < sequence.evicted.end;
    if (!gone) slots.push_back(table_.Slot(sequence, column));
  }
  return slots;
}

void PagedKVCacheImpl::CheckKV(const Tensor& kv, const char* what, int64_t length) const {
  CheckTensor(kv.operator->(), what, config_.device,
              {config_.num_layers, length, config_.num_kv_heads, config_.head_dim});
}

namespace {

/*! \brief The rotary position of a column: a step in flight without pending nodes is not asked for.
 */
int32_t PositionOf(const Sequence& sequence, int32_t column) {
  const int32_t pending = column - sequence.num_committed;
  return pending < 0 ? sequence.PositionOf(column) : sequence.pending.positions[pending];
}

}  // namespace

KVRows PartRows(const tvm::runtime::Tensor& kv, int64_t part) {
  const DType dtype = FloatDType(kv.DataType(), "K and V");
  const int64_t row = kv->shape[2] * kv->shape[3];
  char* data = static_cast<char*>(DataPointer(kv.operator->()));
  return {data + part * kv->shape[1] * row * DTypeSize(dtype), dtype, row};
}

void PagedKVCacheImpl::ReadLayer(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                                 const KVRows& v) const {
  if (cuda_ != nullptr) {
    return cuda_->ReadSlots(static_cast<int32_t>(layer), slots, k, v,
                            CurrentStream(config_.device));
  }
  const auto count = static_cast<int64_t>(slots.size());
  const bool plain = !plain_keys_.empty();
  ReadSlotsCpu(page_shape_, DataPointer(pages_[layer].operator->()), slots.data(), count,
               plain ? KVRows{} : k, v);
  if (!plain) return;
  ReadSlotsCpu(plain_key_shape_, DataPointer(plain_keys_[layer].operator->()), slots.data(), count,
               k, {});
}

void PagedKVCacheImpl::WriteLayer(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                                  const KVRows& v, const Tensor& rotated_k) {
  if (cuda_ != nullptr) {
    return cuda_->WriteSlots(static_cast<int32_t>(layer), slots, k, v,
                             CurrentStream(config_.device));
  }
  const auto count = static_cast<int64_t>(slots.size());
  const bool plain = !plain_keys_.empty();
  WriteSlotsCpu(page_shape_, DataPointer(pages_[layer].operator->()), slots.data(), count,
                plain ? PartRows(rotated_k, 0) : k, v);
  if (!plain) return;
  WriteSlotsCpu(plain_key_shape_, DataPointer(plain_keys_[layer].operator->()), slots.data(), count,
                k, {});
}

void PagedKVCacheImpl::ReadSlots(const std::vector<int32_t>& slots, const Tensor& k,
                                 const Tensor& v) const {
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    ReadLayer(layer, slots, PartRows(k, layer), PartRows(v, layer));
  }
}

void PagedKVCacheImpl::WriteSlots(const std::vector<int32_t>& slots,
                                  const std::vector<int32_t>& positions, const Tensor& k,
                                  const Tensor& v) {
  std::vector<Tensor> rotated(config_.num_layers);
  for (size_t layer = 0; layer < plain_keys_.size(); ++layer) {
    rotated[layer] = RotatedKeys(positions, PartRows(k, layer));
  }
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    WriteLayer(layer, slots, PartRows(k, layer), PartRows(v, layer), rotated[layer]);
  }
}

void PagedKVCacheImpl::DebugGetKV(int64_t seq_id, int64_t begin, int64_t end, Tensor k, Tensor v) {
  WithLock([&] {
    const std::vector<int32_t> slots = Slots(seq_id, begin, end);
    CheckKV(k, "k_data", end - begin);
    CheckKV(v, "v_data", end - begin);
    ReadSlots(slots, k, v);
  });
}

void PagedKVCacheImpl::DebugSetKV(int64_t seq_id, int64_t begin, Tensor k, Tensor v) {
  WithLock([&] {
    if (k->ndim != 4) Throw(ErrorKind::kValue, "k_data must have 4 dimensions, got ", k->ndim);
    const int64_t length = k->shape[1];
    const std::vector<int32_t> slots = Slots(seq_id, begin, begin + length);
    CheckKV(k, "k_data", length);
    CheckKV(v, "v_data", length);
    for (int32_t slot : slots) {
      if (table_.pool().shared(slot / page_shape_.page_size)) {
        Throw(ErrorKind::kRuntime, "tokens of sequence ", seq_id,
              " lie in a page that another sequence or a checkpoint shares; they cannot be set");
      }
    }
    std::vector<int32_t> positions;
    const Sequence& sequence = table_.Get(seq_id);
    for (int64_t i = begin; i < begin + length; ++i) {
      positions.push_back(PositionOf(sequence, sequence.KvIndexOf(static_cast<int32_t>(i))));
    }
    WriteSlots(slots, positions, k, v);
  });
}

void PagedKVCacheImpl::PoisonUnused() {
  WithLock([&] {
    const std::vector<int32_t> held = table_.CountReferences();
    for (int32_t page = 0; page < table_.pool().num_pages(); ++page) {
      if (table_.pool().ref_count(page) == held[page]) continue;
      Throw(ErrorKind::kInternal, "page ", page, " is held ", held[page], " times and counted ",
            table_.pool().ref_count(page), " times");
    }
    const std::vector<bool> used = table_.UsedSlots();
    if (cuda_ != nullptr) return PoisonOnCuda(used);
    const auto poison = [&](const PageShape& shape, const std::vector<Tensor>& layers) {
      for (const Tensor& pages : layers) {
        for (size_t slot = 0; slot < used.size(); ++slot) {
          if (used[slot]) continue;
          PoisonSlotCpu(shape, DataPointer(pages.operator->()), static_cast<int32_t>(slot));
        }
      }
    };
    poison(page_shape_, pages_);
    poison(plain_key_shape_, plain_keys_);
  });
}

}  // namespace kvctl
