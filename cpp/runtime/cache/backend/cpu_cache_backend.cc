// Pages in host memory: creation, and reading and writing of slots.
#include "runtime/cache/backend/cpu_cache_backend.h"

#include <sys/mman.h>

#include "kernels/rope.h"
#include "runtime/cache/step/kv_rows.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

using tvm::runtime::Tensor;

/*!
 * \brief Asks for huge pages of memory. Attention walks through all of a cache, and two threads
 * read it a quarter faster where fewer pages have to be looked up.
 */
void PreferHugePages(const Tensor& tensor) {
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(DataPointer(tensor.operator->()));
  const uintptr_t end = begin + tvm::ffi::GetDataSize(*tensor.operator->());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = end / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

}  // namespace

CpuCacheBackend::CpuCacheBackend(const PagedKVCacheConfig& config, KeyRotator* rotator,
                                 AttentionHooks* hooks)
    : CacheBackend(CacheDevice::kCpu, config, rotator),
      plain_key_shape_(page_shape_),
      hooks_(*hooks) {
  for (const Tensor& pages : pages_) PreferHugePages(pages);
  plain_key_shape_.num_parts = 1;
  for (int64_t layer = 0; config.rope_mode == RopeMode::kInline && layer < config.num_layers;
       ++layer) {
    plain_keys_.push_back(
        Tensor::Empty({config.num_pages, 1, config.num_kv_heads, config.page_size, config.head_dim},
                      config.dtype, config.device));
  }
}

void CpuCacheBackend::ApplyCopies(const CopyPlan& copies) {
  if (copies.empty()) return;
  ForEachArray([&](const PageShape& shape, void* data) {
    for (const PageCopy& copy : copies.pages) CopyPageCpu(shape, data, copy.source, copy.target);
    for (const SlotMove& move : copies.slots) CopySlotCpu(shape, data, move.source, move.target);
  });
}

void CpuCacheBackend::ReadSlots(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                                const KVRows& v) const {
  const auto count = static_cast<int64_t>(slots.size());
  const bool plain = !plain_keys_.empty();
  ReadSlotsCpu(page_shape_, DataPointer(pages_[layer].operator->()), slots.data(), count,
               plain ? KVRows{} : k, v);
  if (!plain) return;
  ReadSlotsCpu(plain_key_shape_, DataPointer(plain_keys_[layer].operator->()), slots.data(), count,
               k, {});
}

void CpuCacheBackend::WriteSlots(int64_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                                 const KVRows& v, const KVRows& plain_k) {
  const auto count = static_cast<int64_t>(slots.size());
  WriteSlotsCpu(page_shape_, DataPointer(pages_[layer].operator->()), slots.data(), count, k, v);
  if (plain_k.data == nullptr) return;
  WriteSlotsCpu(plain_key_shape_, DataPointer(plain_keys_[layer].operator->()), slots.data(), count,
                plain_k, {});
}

void CpuCacheBackend::PoisonSlots(const std::vector<int32_t>& slots) {
  ForEachArray([&](const PageShape& shape, void* data) {
    for (const int32_t slot : slots) PoisonSlotCpu(shape, data, slot);
  });
}

void CpuCacheBackend::RotateSlots(const std::vector<int32_t>& slots, const RopeTable& table) {
  for (const Tensor& pages : pages_) {
    RopeSlotsCpu(table, page_shape_, DataPointer(pages.operator->()), slots.data());
  }
}

}  // namespace kvctl
