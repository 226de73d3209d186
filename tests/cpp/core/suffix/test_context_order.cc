#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "core/suffix/context_order.h"
#include "core/suffix/sort_contexts.h"
#include "core/suffix/text_ring.h"

using kvctl::ContextOrder;
using kvctl::SortContexts;
using kvctl::TextRing;

namespace {

using Slots = std::vector<int32_t>;

// Texts of random lengths over few tokens, an end before and behind each.
Slots RandomTexts(std::mt19937* random, size_t size, uint32_t vocabulary) {
  Slots slots{TextRing::kEnd};
  while (slots.size() < size) {
    const bool ends = slots.back() != TextRing::kEnd && (*random)() % 97 == 0;
    slots.push_back(ends ? TextRing::kEnd : static_cast<int32_t>((*random)() % vocabulary));
  }
  slots.push_back(TextRing::kEnd);
  return slots;
}

std::vector<uint32_t> Members(const Slots& slots) {
  std::vector<uint32_t> members;
  for (uint32_t slot = 0; slot < slots.size(); ++slot) {
    if (slots[slot] != TextRing::kEnd) members.push_back(slot);
  }
  return members;
}

// The contract, as a plain sort.
std::vector<uint32_t> SortedByPairs(const Slots& slots, std::vector<uint32_t> members) {
  std::sort(members.begin(), members.end(), [&](uint32_t a, uint32_t b) {
    for (int32_t i = 0; i < ContextOrder::kMaxContext; ++i) {
      if (slots[a - i] != slots[b - i]) return slots[a - i] < slots[b - i];
      if (slots[a - i] == TextRing::kEnd) break;
    }
    return a < b;
  });
  return members;
}

std::vector<uint32_t> InOrder(const ContextOrder& order) {
  std::vector<uint32_t> members;
  ContextOrder::Place place{0, 0};
  uint32_t slot;
  while (order.Next(&place, &slot)) members.push_back(slot);
  std::vector<uint32_t> backwards;
  while (order.Previous(&place, &slot)) backwards.push_back(slot);
  std::reverse(backwards.begin(), backwards.end());
  EXPECT(members == backwards);
  return members;
}

}  // namespace

TEST(ContextsSortByTheirLastTokens) {
  std::mt19937 random(1);
  for (uint32_t vocabulary : {1u, 2u, 5u, 1000u}) {
    const Slots slots = RandomTexts(&random, 3000, vocabulary);
    std::vector<uint32_t> members = Members(slots);
    const std::vector<uint32_t> expected = SortedByPairs(slots, members);
    std::shuffle(members.begin(), members.end(), random);
    SortContexts(slots.data(), members.data(), members.size());
    EXPECT(members == expected);
  }
}

TEST(ContextOrderKeepsItsOrderThroughChanges) {
  std::mt19937 random(2);
  for (uint32_t vocabulary : {1u, 3u, 200u}) {
    const Slots slots = RandomTexts(&random, 5000, vocabulary);
    std::vector<uint32_t> out = Members(slots), in;
    ContextOrder order;
    for (int32_t phase = 0; phase < 6; ++phase) {
      // Mostly in, then mostly out, and at last all of them.
      const uint32_t chance = phase == 5 ? 0 : phase % 2 == 0 ? 90 : 15;
      for (int32_t i = 0; i < 4000; ++i) {
        const bool insert = random() % 100 < chance;
        std::vector<uint32_t>&from = insert ? out : in, &to = insert ? in : out;
        if (from.empty()) continue;
        std::swap(from[random() % from.size()], from.back());
        if (insert) {
          order.Insert(slots.data(), from.back());
        } else {
          order.Erase(slots.data(), from.back());
        }
        to.push_back(from.back());
        from.pop_back();
      }
      EXPECT_EQ(order.size(), in.size());
      EXPECT(InOrder(order) == SortedByPairs(slots, in));
    }
    while (!in.empty()) {
      order.Erase(slots.data(), in.back());
      in.pop_back();
    }
    EXPECT_EQ(order.size(), size_t{0});
    EXPECT(InOrder(order).empty());
  }
}

TEST(ContextOrderAssignsAllAtOnce) {
  std::mt19937 random(3);
  const Slots slots = RandomTexts(&random, 4000, 4);
  ContextOrder order;
  order.Insert(slots.data(), 1);
  order.Assign(slots.data(), Members(slots));
  EXPECT(InOrder(order) == SortedByPairs(slots, Members(slots)));
  order.Assign(slots.data(), {});
  EXPECT(InOrder(order).empty());
}
