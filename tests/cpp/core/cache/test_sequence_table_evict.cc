#include <numeric>
#include <vector>

#include "check.h"
#include "core/cache/sequence_table.h"

using kvctl::CopyPlan;
using kvctl::KeyRotation;
using kvctl::PageCopy;
using kvctl::Sequence;
using kvctl::SequenceTable;
using kvctl::SlotMove;

namespace {

// Pages of 4 tokens, and the device as one number per slot: the token that lies there, and how far
// its key was rotated.
struct Cache {
  explicit Cache(int32_t num_pages) : table({num_pages, 4, 64, 0}), slots(num_pages * 4, -1) {}

  void ApplyCopies() {
    for (const PageCopy& copy : moves.pages) {
      for (int32_t i = 0; i < 4; ++i) slots[copy.target * 4 + i] = slots[copy.source * 4 + i];
    }
    for (const SlotMove& move : moves.slots) slots[move.target] = slots[move.source];
    for (const KeyRotation& rotation : moves.rotations)
      slots[rotation.slot] += 1000 * (rotation.to - rotation.from);
  }
  /*! \brief Appends tokens with these numbers. */
  void Append(int64_t id, const std::vector<int32_t>& tokens) {
    moves.clear();
    table.BeginForward({{id, static_cast<int32_t>(tokens.size())}}, &moves);
    ApplyCopies();
    for (size_t i = 0; i < tokens.size(); ++i) slots[table.plan().slots[i]] = tokens[i];
    table.EndForward();
  }
  void Evict(int64_t id, const std::vector<int32_t>& keep, bool renumber = false) {
    moves.clear();
    table.Evict(id, keep, renumber, &moves);
    ApplyCopies();
  }
  std::vector<int32_t> Tokens(int64_t id) const {
    const Sequence& sequence = table.Get(id);
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < sequence.kv_len(); ++i) {
      tokens.push_back(slots[table.Slot(sequence, i)]);
    }
    return tokens;
  }
  bool CountsAgree() const {
    const std::vector<int32_t> held = table.CountReferences();
    for (int32_t page = 0; page < table.pool().size(); ++page) {
      if (held[page] != table.pool().ref_count(page)) return false;
    }
    return true;
  }

  SequenceTable table;
  std::vector<int32_t> slots;
  CopyPlan moves;
};

std::vector<int32_t> Count(int32_t begin, int32_t end) {
  std::vector<int32_t> numbers(end - begin);
  std::iota(numbers.begin(), numbers.end(), begin);
  return numbers;
}

using Tokens = std::vector<int32_t>;

}  // namespace

TEST(EvictKeepsTokensAndTheirPositions) {
  Cache cache(8);
  cache.table.Add(0);
  cache.Append(0, Count(0, 14));
  cache.Evict(0, {0, 1, 5, 9, 10, 12});
  EXPECT(cache.Tokens(0) == (Tokens{0, 1, 5, 9, 10, 12}));
  EXPECT(*cache.table.Get(0).positions == (Tokens{0, 1, 5, 9, 10, 12}));
  EXPECT_EQ(cache.table.Get(0).next_position, 14);
  EXPECT_EQ(cache.table.pool().num_free(), 6);
  cache.Append(0, {14, 15});
  EXPECT(cache.Tokens(0) == (Tokens{0, 1, 5, 9, 10, 12, 14, 15}));
  EXPECT_EQ(cache.table.Get(0).PositionOf(7), 15);
  cache.table.PopN(0, 4);  // drops kept tokens, too
  EXPECT_EQ(cache.table.Get(0).next_position, 10);
  EXPECT(cache.CountsAgree());
}

TEST(EvictRenumbersOnRequest) {
  Cache cache(8);
  cache.table.Add(0);
  cache.Append(0, Count(0, 10));
  cache.Evict(0, {0, 1, 4, 9}, true);
  EXPECT(cache.Tokens(0) == (Tokens{0, 1, 4 - 2000, 9 - 6000}));
  EXPECT(cache.table.Get(0).positions == nullptr);
  EXPECT_EQ(cache.table.Get(0).next_position, 4);
  cache.Append(0, {10});
  cache.Evict(0, {1, 4});  // the positions now: 1, 4
  cache.Evict(0, {0, 1}, true);
  EXPECT(cache.Tokens(0) == (Tokens{1 - 1000, 10 - 3000}));
}

TEST(EvictOfWholePagesMovesNothing) {
  Cache cache(8);
  cache.table.Add(0);
  cache.Append(0, Count(0, 26));
  cache.table.Fork(0, 1, -1);
  Tokens keep = Count(0, 4);
  for (int32_t token : Count(16, 26)) keep.push_back(token);
  cache.Evict(0, keep);
  EXPECT(cache.moves.empty());
  EXPECT(cache.Tokens(0) == keep);
  EXPECT(cache.Tokens(1) == Count(0, 26));
  EXPECT_EQ(cache.table.pool().num_free(), 1);
  EXPECT(cache.CountsAgree());
}

TEST(EvictNeedsNoPageWhereNothingIsShared) {
  Cache cache(4);
  cache.table.Add(0);
  cache.Append(0, Count(0, 16));
  cache.Evict(0, {1, 3, 5, 7, 9, 11, 13, 15});
  EXPECT(cache.Tokens(0) == (Tokens{1, 3, 5, 7, 9, 11, 13, 15}));
  EXPECT_EQ(cache.table.pool().num_free(), 2);
  cache.Evict(0, {});
  EXPECT_EQ(cache.table.pool().num_free(), 4);
  EXPECT_EQ(cache.table.Get(0).next_position, 16);
}

TEST(EvictLeavesForksAlone) {
  Cache cache(8);
  cache.table.Add(0);
  cache.Append(0, Count(0, 12));
  cache.table.Fork(0, 1, 10);
  cache.Evict(0, {0, 1, 2, 3, 5, 7, 8});
  EXPECT(cache.Tokens(0) == (Tokens{0, 1, 2, 3, 5, 7, 8}));
  EXPECT(cache.Tokens(1) == Count(0, 10));
  EXPECT_EQ(cache.table.pool().num_free(), 4);  // the first page is still one
  EXPECT(cache.CountsAgree());
}

TEST(EvictOutOfPagesChangesNothing) {
  Cache cache(4);
  cache.table.Add(0);
  cache.Append(0, Count(0, 14));
  cache.table.Fork(0, 1, -1);
  EXPECT_ERROR(cache.table.Evict(0, {0, 2, 3, 4, 5}, false, &cache.moves), kOutOfPages,
               "evict needs 2 pages and 0 of 4 are free");
  EXPECT(cache.Tokens(0) == Count(0, 14));
  EXPECT(cache.moves.empty());
  EXPECT(cache.CountsAgree());
}

TEST(EvictIsUndoneByARollback) {
  Cache cache(8);
  cache.table.Add(0);
  cache.Append(0, Count(0, 14));
  auto early = cache.table.MakeCheckpoint(0);
  cache.Append(0, {14, 15});
  auto late = cache.table.MakeCheckpoint(0);
  cache.Evict(0, {0, 1, 2, 3, 6, 8, 9, 15}, true);
  EXPECT(cache.Tokens(0) == (Tokens{0, 1, 2, 3, 6 - 2000, 8 - 3000, 9 - 3000, 15 - 8000}));
  EXPECT_EQ(cache.table.pool().num_free(), 3);  // four earlier pages, one of them shared
  cache.Append(0, Count(100, 106));
  cache.table.Rollback(0, late.get());
  EXPECT(cache.Tokens(0) == Count(0, 16));
  EXPECT(cache.table.Get(0).positions == nullptr);
  EXPECT_EQ(cache.table.Get(0).next_position, 16);
  cache.Evict(0, {3});
  cache.table.Rollback(0, early.get());
  EXPECT(cache.Tokens(0) == Count(0, 14));
  early.reset();
  late.reset();
  EXPECT_EQ(cache.table.pool().num_free(), 4);
  EXPECT(cache.CountsAgree());
}

TEST(EvictPinsOnlyThePagesThatChange) {
  Cache cache(8);
  cache.table.Add(0);
  cache.Append(0, Count(0, 16));
  auto checkpoint = cache.table.MakeCheckpoint(0);
  cache.Evict(0, Count(0, 9));  // a cut: the checkpoint holds two pages, one of them shared
  EXPECT(cache.moves.empty());
  EXPECT_EQ(cache.table.pool().num_free(), 4);
  cache.table.Remove(0);
  EXPECT_EQ(cache.table.pool().num_free(), 8);
}

TEST(EvictClosesTheGapThatAWindowLeft) {
  Cache cache(16);
  cache.table.Add(0);
  cache.table.SetWindow(0, {6, 2, 0});
  cache.Append(0, Count(0, 30));
  EXPECT_EQ(cache.table.Get(0).evicted.begin, 4);
  EXPECT_EQ(cache.table.Get(0).evicted.end, 24);
  EXPECT_ERROR(cache.table.Evict(0, {0, 23, 25}, false, &cache.moves), kValue,
               "token 23 of sequence 0 cannot be kept: its sliding window has evicted tokens "
               "[4, 24)");
  cache.Evict(0, {0, 1, 25, 26, 27, 28, 29}, true);
  EXPECT(cache.Tokens(0) ==
         (Tokens{0, 1, 25 - 23000, 26 - 23000, 27 - 23000, 28 - 23000, 29 - 23000}));
  EXPECT(cache.table.Get(0).evicted.empty());
  cache.Append(0, Count(7, 20));  // it slides further by the new positions
  EXPECT_EQ(cache.table.Get(0).evicted.begin, 4);
  EXPECT_EQ(cache.table.Get(0).evicted.end, 12);
  EXPECT(cache.CountsAgree());
}

TEST(RollbackAcrossAnEvictionKnowsThatASinkIsEvicted) {
  Cache cache(16);
  cache.table.Add(0);
  cache.table.SetWindow(0, {4, 0, 0});
  cache.Append(0, Count(0, 20));
  auto checkpoint = cache.table.MakeCheckpoint(0);
  cache.Evict(0, {18, 19});
  cache.table.SetWindow(0, {4, 1, 0});  // nothing is evicted, so the window may have sinks now
  EXPECT_ERROR(cache.table.Rollback(0, checkpoint.get()), kValue, "has evicted");
  cache.table.SetWindow(0, {4, 0, 0});
  cache.table.Rollback(0, checkpoint.get());
  EXPECT_EQ(cache.table.Get(0).evicted.end, 16);
}

TEST(EvictRefusesWhatMakesNoSense) {
  Cache cache(8);
  cache.table.Add(0);
  cache.Append(0, Count(0, 6));
  CopyPlan moves;
  EXPECT_ERROR(cache.table.Evict(1, {}, false, &moves), kKey, "no sequence 1");
  EXPECT_ERROR(cache.table.Evict(0, {0, 6}, false, &moves), kIndex, "kept token 6 is not in");
  EXPECT_ERROR(cache.table.Evict(0, {-1}, false, &moves), kIndex, "kept token -1");
  EXPECT_ERROR(cache.table.Evict(0, {2, 1}, false, &moves), kValue,
               "ascending order, got 1 after 2");
  EXPECT_ERROR(cache.table.Evict(0, {2, 2}, false, &moves), kValue, "got 2 after 2");
  const std::vector<int32_t> root{-1};
  cache.table.BeginForward({{0, 1, true, root.data()}}, &moves);
  EXPECT_ERROR(cache.table.Evict(0, {0}, false, &moves), kRuntime, "between begin_forward");
  cache.table.EndForward();
  EXPECT_ERROR(cache.table.Evict(0, {0}, false, &moves), kValue,
               "has 1 pending nodes; commit or abort them");
}
