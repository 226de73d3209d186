#include <vector>

#include "check.h"
#include "table_steps.h"

using kvctl::CopyPlan;
using kvctl::SequenceTable;
using kvctl::StepRequest;

namespace {

// Pages of 4 tokens, 8 of them, steps of at most 16.
struct Fixture : kvctl::TableSteps {
  Fixture() : TableSteps({8, 4, 16, 4}) {}
};

}  // namespace

TEST(TableAppendsAndPops) {
  Fixture f;
  f.table.Add(7);
  f.Chain(7, 6);
  EXPECT_EQ(f.table.Get(7).num_committed, 6);
  EXPECT_EQ(f.table.pool().num_free(), 6);
  f.table.PopN(7, 3);
  EXPECT_EQ(f.table.Get(7).num_committed, 3);
  EXPECT_EQ(f.table.pool().num_free(), 7);
  EXPECT_ERROR(f.table.PopN(7, 4), kValue, "cannot pop 4 tokens from sequence 7, which has 3");
  EXPECT_ERROR(f.table.PopN(8, 1), kKey, "no sequence 8");
}

TEST(TableForkCopiesASharedPageOnWrite) {
  Fixture f;
  f.table.Add(0);
  f.Chain(0, 6);
  f.table.Fork(0, 1, -1);
  EXPECT_EQ(f.table.pool().num_free(), 6);
  f.Chain(1, 1);
  EXPECT_EQ(f.moves.pages.size(), 1u);
  EXPECT_EQ(f.moves.pages[0].source, f.table.Get(0).pages[1]);
  EXPECT_EQ(f.moves.pages[0].target, f.table.Get(1).pages[1]);
  f.Chain(0, 1);  // the only holder of its page again
  EXPECT(f.moves.empty());
}

TEST(TableCommitsAPathInPlaceOfTheTree) {
  Fixture f;
  f.table.Add(0);
  f.Chain(0, 3);
  // 0 -> 1, 0 -> 2 -> 3
  f.Tree(0, {-1, 0, 0, 2});
  f.moves.clear();
  f.table.Commit({0}, {{0, 2, 3}}, &f.moves);
  EXPECT_EQ(f.moves.slots.size(), 2u);
  EXPECT_EQ(f.table.Get(0).num_committed, 6);
  EXPECT(f.table.Get(0).pending.empty());
  EXPECT_EQ(f.table.Get(0).next_position, 6);
}

TEST(TableCommitRefusesWhatIsNotAPath) {
  Fixture f;
  f.table.Add(0);
  f.Tree(0, {-1, 0, 0, 2});
  EXPECT_ERROR(f.table.Commit({0}, {{0, 3}}, &f.moves), kValue,
               "position 2 and would be committed");
  EXPECT_ERROR(f.table.Commit({0}, {{0, 1, 3}}, &f.moves), kValue,
               "kept node 3 of sequence 0 hangs on node 2, and the one kept before it is node 1");
  EXPECT_ERROR(f.table.Commit({0}, {{2, 0}}, &f.moves), kValue, "position");
  EXPECT_ERROR(f.table.Commit({0}, {{0, 4}}, &f.moves), kIndex, "has 4 nodes");
  EXPECT_ERROR(f.table.Commit({0, 0}, {{0}, {0}}, &f.moves), kValue, "named twice");
  EXPECT_EQ(f.table.Get(0).pending.size(), 4);
}

TEST(TableCommitKeepsAnyNodesIfAsked) {
  Fixture f;
  f.table.Add(0);
  f.Tree(0, {-1, 0, 0, 2});
  f.table.Commit({0}, {{0, 1, 3}}, &f.moves, kvctl::KeptNodes::kAny);
  EXPECT_EQ(f.table.Get(0).num_committed, 3);
}

TEST(TableCommitChecksPathsAcrossTheStepsOfATree) {
  Fixture f;
  f.table.Add(0);
  f.Tree(0, {-1, -1});
  f.Tree(0, {1, 2});
  EXPECT_ERROR(f.table.Commit({0}, {{0, 2}}, &f.moves), kValue, "kept node 2 of sequence 0 hangs");
  EXPECT_EQ(f.table.Get(0).pending.size(), 4);
  f.table.Commit({0}, {{1, 2, 3}}, &f.moves);
  EXPECT_EQ(f.table.Get(0).num_committed, 3);
}

TEST(TableCommitReadsAPageBeforeAnotherSequenceGetsIt) {
  SequenceTable table({12, 4, 16, 4});
  CopyPlan moves;
  const std::vector<int32_t> roots(6, -1);
  table.Add(0);
  table.BeginForward({{0, 3}}, &moves);
  table.EndForward();
  table.BeginForward({{0, 2, true, roots.data()}}, &moves);
  table.EndForward();
  table.Fork(0, 1, -1);  // a commit of 0 must copy the page it shares with 1
  table.Add(2);
  table.BeginForward({{2, 3}}, &moves);
  table.EndForward();
  table.BeginForward({{2, 6, true, roots.data()}}, &moves);
  table.EndForward();
  moves.clear();
  table.Commit({2, 0}, {{2}, {1}}, &moves);  // 2 keeps a node whose page it then frees
  EXPECT_EQ(moves.pages.size(), 1u);
  for (const kvctl::SlotMove& move : moves.slots) {
    EXPECT(moves.pages[0].target != move.source / 4);
  }
}

TEST(TableCommitCountsThePagesThatCheckpointsKeepFromOthers) {
  SequenceTable table({2, 4, 16, 4});
  CopyPlan moves;
  const std::vector<int32_t> roots(2, -1);
  table.Add(0);
  table.BeginForward({{0, 2}}, &moves);
  table.EndForward();
  table.BeginForward({{0, 2, true, roots.data()}}, &moves);
  table.EndForward();
  table.Fork(0, 1, -1);
  auto checkpoint = table.MakeCheckpoint(0);
  // The checkpoint holds the page that both write into, so both need a copy of it.
  EXPECT_ERROR(table.Commit({0, 1}, {{1}, {1}}, &moves), kOutOfPages, "needs 2 pages and 1");
  EXPECT_EQ(table.Get(0).pending.size(), 2);
  EXPECT_EQ(table.pool().num_free(), 1);
  const std::vector<int32_t> held = table.CountReferences();
  EXPECT_EQ(held[0], table.pool().ref_count(0));
}

TEST(TableTreeGrowsOverSeveralSteps) {
  Fixture f;
  f.table.Add(0);
  f.Chain(0, 2);
  f.Tree(0, {-1, 0});
  f.Tree(0, {0, 2});
  EXPECT_EQ(f.table.Get(0).pending.depths[3], 2);
  f.table.Commit({0}, {{0, 2, 3}}, &f.moves);
  EXPECT_EQ(f.table.Get(0).num_committed, 5);
}

TEST(TableOutOfPagesChangesNothing) {
  Fixture f;
  f.table.Add(0);
  f.table.Add(1);
  f.Chain(0, 16);
  f.Chain(0, 10);  // 7 pages
  EXPECT_ERROR(f.table.BeginForward({{1, 4}, {0, 4}}, &f.moves), kOutOfPages,
               "begin_forward needs 2 pages and 1 of 8 are free");
  EXPECT(!f.table.in_forward());
  EXPECT_EQ(f.table.Get(0).kv_len(), 26);
  EXPECT_EQ(f.table.pool().num_free(), 1);
}

TEST(TableAbortForwardRestoresPages) {
  Fixture f;
  f.table.Add(0);
  f.Chain(0, 6);
  f.table.Fork(0, 1, -1);
  const std::vector<int32_t> pages = f.table.Get(1).pages;
  f.table.BeginForward({{1, 5}, {0, 3}}, &f.moves);
  EXPECT_ERROR(f.table.PopN(1, 1), kRuntime, "between begin_forward and end_forward");
  f.table.AbortForward(nullptr);
  EXPECT(f.table.Get(1).pages == pages);
  EXPECT(f.table.Get(0).pages == pages);
  EXPECT_EQ(f.table.pool().num_free(), 6);
  EXPECT_EQ(f.table.pool().ref_count(pages[1]), 2);
}

TEST(TableAbortForwardBringsBackWhatAnotherOverwrote) {
  Fixture f;
  f.table.Add(0);
  f.Chain(0, 7);
  f.table.Fork(0, 1, 6);
  const int32_t page = f.table.Get(0).pages[1];
  f.moves.clear();
  // 0 copies the page; then 1 is its only holder and writes where 0 has its token 6.
  f.table.BeginForward({{0, 1}, {1, 1}}, &f.moves);
  EXPECT_EQ(f.table.plan().slots[1], page * 4 + 2);
  const int32_t copy = f.table.Get(0).pages[1];
  EXPECT(copy != page);
  f.moves.clear();
  f.table.AbortForward(&f.moves);
  EXPECT_EQ(f.table.Get(0).pages[1], page);
  bool restored = false;
  for (const kvctl::SlotMove& move : f.moves.slots) {
    restored = restored || (move.source == copy * 4 + 2 && move.target == page * 4 + 2);
  }
  EXPECT(restored);
}

TEST(CheckpointHoldsNothingUntilItMust) {
  Fixture f;
  f.table.Add(0);
  f.Chain(0, 6);
  auto checkpoint = f.table.MakeCheckpoint(0);
  f.Chain(0, 5);
  EXPECT(f.moves.empty());  // growing copies nothing
  EXPECT_EQ(f.table.pool().num_free(), 5);
  f.table.PopN(0, 7);  // below the checkpoint: it now holds the second page
  EXPECT_EQ(f.table.Get(0).kv_len(), 4);
  EXPECT_EQ(f.table.pool().num_free(), 6);
  f.Chain(0, 1);
  f.table.Rollback(0, checkpoint.get());
  EXPECT_EQ(f.table.Get(0).kv_len(), 6);
  EXPECT_EQ(f.table.pool().num_free(), 6);
  checkpoint.reset();
  f.table.Remove(0);
  EXPECT_EQ(f.table.pool().num_free(), 8);
}

TEST(CheckpointOutlivesItsSequenceHarmlessly) {
  Fixture f;
  f.table.Add(0);
  f.Chain(0, 6);
  auto checkpoint = f.table.MakeCheckpoint(0);
  f.table.PopN(0, 6);
  f.table.Remove(0);
  EXPECT_EQ(f.table.pool().num_free(), 8);
  f.table.Add(0);
  EXPECT_ERROR(f.table.Rollback(0, checkpoint.get()), kValue, "has been removed");
}
