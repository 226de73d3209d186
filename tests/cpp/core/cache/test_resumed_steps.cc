// Steps in which pending nodes run the layers that an earlier step left out.
#include <vector>

#include "check.h"
#include "table_steps.h"

using kvctl::CopyPlan;
using kvctl::SequenceTable;
using kvctl::StepRequest;

namespace {

// Pages of 4 tokens, 8 of them, steps of at most 16.
struct Fixture : kvctl::TableSteps {
  Fixture() : TableSteps({8, 4, 16, 4}) {
    table.Add(0);
    Chain(0, 3);
  }

  /*! \brief A tree of which a step wrote the first `layers` layers. */
  std::vector<int32_t> PartialTree(const std::vector<int32_t>& parents, int32_t layers) {
    StepRequest request;
    request.seq_id = 0;
    request.append_length = static_cast<int64_t>(parents.size());
    request.parents = parents.data();
    table.BeginForward({request}, &moves);
    const std::vector<int32_t> slots = table.plan().slots;
    table.EndForward(layers);
    return slots;
  }

  StepRequest Resume() const {
    StepRequest request;
    request.seq_id = 0;
    request.resume = true;
    request.append_length = table.Get(0).pending.size();
    return request;
  }
};

}  // namespace

TEST(ResumedNodesKeepTheirSlotsAndCanBeCommitted) {
  Fixture f;
  const std::vector<int32_t> slots = f.PartialTree({-1, 0, 0, 2}, 5);
  EXPECT_EQ(f.table.Get(0).pending.layers_written, 5);
  EXPECT_ERROR(f.table.Commit({0}, {{0}}, &f.moves), kValue, "cannot be committed: node 0");
  f.table.BeginForward({f.Resume()}, &f.moves);
  const kvctl::StepPlan& plan = f.table.plan();
  EXPECT(plan.slots == slots);
  EXPECT(plan.positions == (std::vector<int32_t>{3, 4, 4, 5}));
  EXPECT_EQ(plan.sequences[0].num_query_tokens, 4);
  EXPECT_EQ(plan.sequences[0].num_pending, 4);
  EXPECT_EQ(plan.sequences[0].parents[3], 2);
  EXPECT(!f.table.StepCommits());
  f.table.EndForward();
  EXPECT_EQ(f.table.Get(0).pending.num_written, 4);
  f.table.Commit({0}, {{0, 2, 3}}, &f.moves);
  EXPECT_EQ(f.table.Get(0).num_committed, 6);
}

TEST(AnAbortedResumptionChangesNothing) {
  Fixture f;
  f.PartialTree({-1, 0, 1, 2}, 2);
  const int32_t free = f.table.pool().num_free();
  f.table.BeginForward({f.Resume()}, &f.moves);
  f.table.AbortForward(&f.moves);
  EXPECT_EQ(f.table.Get(0).pending.size(), 4);
  EXPECT_EQ(f.table.Get(0).pending.num_written, 0);
  EXPECT_EQ(f.table.Get(0).pending.layers_written, 2);
  EXPECT_EQ(f.table.pool().num_free(), free);
}

TEST(NodesOfSeveralStepsResumeFromTheFirstLayerThatAnyLacks) {
  Fixture f;
  f.PartialTree({-1}, 4);
  f.PartialTree({0}, 2);
  EXPECT_EQ(f.table.Get(0).pending.layers_written, 2);
  f.table.BeginForward({f.Resume()}, &f.moves);
  f.table.EndForward(3);  // and stops again
  EXPECT_EQ(f.table.Get(0).pending.layers_written, 3);
  EXPECT_EQ(f.table.Get(0).pending.num_written, 0);
}

TEST(WhatCannotBeResumed) {
  Fixture f;
  StepRequest request = f.Resume();
  EXPECT_ERROR(f.table.BeginForward({request}, &f.moves), kValue, "no pending nodes that lack");
  f.Tree(0, {-1});
  EXPECT_ERROR(f.table.BeginForward({f.Resume()}, &f.moves), kValue, "no pending nodes that lack");
  f.PartialTree({0, 1}, 1);
  request = f.Resume();
  request.append_length = 2;
  EXPECT_ERROR(f.table.BeginForward({request}, &f.moves), kValue, "takes its 3 pending nodes");
  f.table.Add(1);
  StepRequest other;
  other.seq_id = 1;
  other.append_length = 1;
  EXPECT_ERROR(f.table.BeginForward({f.Resume(), other}, &f.moves), kValue, "not both");
  f.table.Fork(0, 2, 3);
  f.Chain(2, 1);  // copies the page: the first holder is alone again
  f.table.BeginForward({f.Resume()}, &f.moves);
  f.table.EndForward();
  EXPECT_EQ(f.table.Get(0).pending.num_written, 3);
}

TEST(PendingNodesInASharedPageAreNotResumed) {
  Fixture f;
  f.PartialTree({-1}, 1);
  f.table.Fork(0, 1, 3);
  EXPECT_ERROR(f.table.BeginForward({f.Resume()}, &f.moves), kValue, "a fork or a checkpoint");
}
