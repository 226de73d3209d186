#include "core/suffix/context_order.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/suffix/sort_contexts.h"
#include "core/suffix/text_ring.h"
#include "core/support/make_room.h"

namespace kvctl {
namespace {

template <typename T>
void MoveSlots(T* slots, int32_t from, int32_t to, int32_t count) {
  std::memmove(slots + to, slots + from, static_cast<size_t>(count) * sizeof(T));
}

}  // namespace

ContextOrder::Comparison ContextOrder::Compare(const int32_t* a, const int32_t* b) {
  for (int32_t i = 0; i < kMaxContext; ++i) {
    if (a[-i] != b[-i]) return {a[-i] < b[-i] ? -1 : 1, i};
    if (a[-i] == TextRing::kEnd) return {0, i};
  }
  return {0, kMaxContext};
}

size_t ContextOrder::bytes() const {
  return blocks_.capacity() * sizeof(Entry) + blocks_.size() * sizeof(Block);
}

// The place before the first slot s with less(s), where the slots for which it is true come last.
// `token` is the last token of what is looked for.
template <typename Less>
ContextOrder::Place ContextOrder::Find(const int32_t* slots, int32_t token,
                                       const Less& less) const {
  const auto behind = [&](const Entry& entry) {
    return entry.token != token ? entry.token > token : less(entry.first);
  };
  size_t low = 0, high = blocks_.size();  // the first block behind it is in [low, high]
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (behind(blocks_[middle])) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  if (low == 0) return {0, 0};
  const Block& block = *blocks_[low - 1].block;
  int32_t begin = 1, end = block.count;  // its first slot is not behind
  while (begin < end) {
    const int32_t middle = (begin + end) / 2;
    // What is compared next is one of two; most of the time goes into waiting for memory.
    __builtin_prefetch(slots + block.slots[(begin + middle) / 2]);
    __builtin_prefetch(slots + block.slots[std::min((middle + 1 + end) / 2, block.count - 1)]);
    if (less(block.slots[middle])) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return {low - 1, begin};
}

ContextOrder::Place ContextOrder::UpperBound(const int32_t* slots, const int32_t* last) const {
  return Find(slots, *last, [&](uint32_t other) { return Compare(slots + other, last).order > 0; });
}

// The place behind all slots that are not larger than this one.
ContextOrder::Place ContextOrder::FindSlot(const int32_t* slots, uint32_t slot) const {
  return Find(slots, slots[slot], [&](uint32_t other) {
    const int32_t order = Compare(slots + other, slots + slot).order;
    return order != 0 ? order > 0 : other > slot;
  });
}

void ContextOrder::SetFirst(const int32_t* slots, size_t block) {
  Entry& entry = blocks_[block];
  entry.first = entry.block->slots[0];
  entry.token = slots[entry.first];
}

void ContextOrder::Insert(const int32_t* slots, uint32_t slot) {
  if (blocks_.empty()) {
    MakeRoom(&blocks_, 1);
    auto block = std::make_unique<Block>();
    block->count = 1;
    block->slots[0] = slot;
    blocks_.push_back({std::move(block), slot, slots[slot]});
    size_ = 1;
    return;
  }
  Place place = FindSlot(slots, slot);
  if (blocks_[place.block].block->count == kBlock) {
    constexpr int32_t kHalf = kBlock / 2;
    MakeRoom(&blocks_, 1);
    auto upper = std::make_unique<Block>();
    Block& lower = *blocks_[place.block].block;
    std::copy(lower.slots + kHalf, lower.slots + kBlock, upper->slots);
    upper->count = kBlock - kHalf;
    lower.count = kHalf;
    blocks_.insert(blocks_.begin() + static_cast<ptrdiff_t>(place.block) + 1,
                   Entry{std::move(upper), 0, 0});
    SetFirst(slots, place.block + 1);
    if (place.index > kHalf) place = {place.block + 1, place.index - kHalf};
  }
  Block& block = *blocks_[place.block].block;
  MoveSlots(block.slots, place.index, place.index + 1, block.count - place.index);
  block.slots[place.index] = slot;
  ++block.count;
  ++size_;
  if (place.index == 0) SetFirst(slots, place.block);
}

void ContextOrder::Erase(const int32_t* slots, uint32_t slot) {
  const Place place = FindSlot(slots, slot);
  const auto at = blocks_.begin() + static_cast<ptrdiff_t>(place.block);
  Block& block = *at->block;
  MoveSlots(block.slots, place.index, place.index - 1, block.count - place.index);
  --block.count;
  --size_;
  if (block.count == 0) {
    blocks_.erase(at);
    return;
  }
  if (place.index == 1) SetFirst(slots, place.block);
  if (place.block + 1 == blocks_.size()) return;
  const Block& next = *(at + 1)->block;
  // Not up to the brim, or the next insertion would split it again.
  if (block.count + next.count <= kBlock * 3 / 4) {
    std::copy(next.slots, next.slots + next.count, block.slots + block.count);
    block.count += next.count;
    blocks_.erase(at + 1);
  }
}

void ContextOrder::Assign(const int32_t* slots, std::vector<uint32_t> members) {
  constexpr size_t kFill = kBlock * 7 / 8;  // the first insertions split no block
  SortContexts(slots, members.data(), members.size());
  std::vector<Entry> blocks;
  blocks.reserve((members.size() + kFill - 1) / kFill);
  for (size_t begin = 0; begin < members.size(); begin += kFill) {
    const size_t count = std::min(kFill, members.size() - begin);
    auto block = std::make_unique<Block>();
    block->count = static_cast<int32_t>(count);
    std::copy_n(members.begin() + static_cast<ptrdiff_t>(begin), count, block->slots);
    blocks.push_back({std::move(block), members[begin], slots[members[begin]]});
  }
  blocks_ = std::move(blocks);
  size_ = members.size();
}

bool ContextOrder::Next(Place* place, uint32_t* slot) const {
  if (place->block < blocks_.size() && place->index == blocks_[place->block].block->count) {
    *place = {place->block + 1, 0};
  }
  if (place->block >= blocks_.size()) return false;
  *slot = blocks_[place->block].block->slots[place->index++];
  return true;
}

bool ContextOrder::Previous(Place* place, uint32_t* slot) const {
  if (place->index == 0) {
    if (place->block == 0) return false;
    *place = {place->block - 1, blocks_[place->block - 1].block->count};
  }
  *slot = blocks_[place->block].block->slots[--place->index];
  return true;
}

}  // namespace kvctl
