#include "core/suffix/sort_contexts.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/suffix/context_order.h"
#include "core/suffix/text_ring.h"

namespace kvctl {
namespace {

constexpr size_t kFew = 48;  // so many are compared pair by pair

struct Keyed {
  uint64_t key;
  uint32_t slot;

  bool operator<(const Keyed& other) const {
    return key != other.key ? key < other.key : slot < other.slot;
  }
};

uint64_t Bits(int32_t token) { return static_cast<uint32_t>(token + 1); }  // kEnd: 0

// The two tokens at this distance before the context's last one; they end where the text begins.
uint64_t Key(const int32_t* last, int32_t distance) {
  const uint64_t near = Bits(last[-distance]);
  return near << 32 | (near == Bits(TextRing::kEnd) ? 0 : Bits(last[-distance - 1]));
}

// Sorts slots whose contexts share their last `shared` tokens.
void Sort(const int32_t* slots, uint32_t* members, size_t count, int32_t shared) {
  if (count <= kFew) {
    std::sort(members, members + count, [&](uint32_t a, uint32_t b) {
      const int32_t order = ContextOrder::Compare(slots + a, slots + b).order;
      return order != 0 ? order < 0 : a < b;
    });
    return;
  }
  std::vector<std::pair<uint32_t, uint32_t>> equal;  // runs to be told apart by earlier tokens
  {
    std::vector<Keyed> keyed(count);
    for (size_t i = 0; i < count; ++i) {
      keyed[i] = {Key(slots + members[i], shared), members[i]};
    }
    std::sort(keyed.begin(), keyed.end());
    size_t begin = 0;
    for (size_t i = 0; i < count; ++i) {
      members[i] = keyed[i].slot;
      if (i + 1 < count && keyed[i + 1].key == keyed[i].key) continue;
      const bool ends = static_cast<uint32_t>(keyed[i].key) == 0;
      if (i > begin && !ends) {
        equal.emplace_back(static_cast<uint32_t>(begin), static_cast<uint32_t>(i + 1));
      }
      begin = i + 1;
    }
  }
  if (shared + 2 >= ContextOrder::kMaxContext) return;
  for (const auto& [begin, end] : equal) Sort(slots, members + begin, end - begin, shared + 2);
}

}  // namespace

void SortContexts(const int32_t* slots, uint32_t* members, size_t count) {
  Sort(slots, members, count, 0);
}

}  // namespace kvctl
