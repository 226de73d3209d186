// The table of a recurrent state, by example.
#include <vector>

#include "check.h"
#include "core/recurrent/recurrent_table.h"

namespace {

using kvctl::RecurrentConfig;
using kvctl::RecurrentTable;
using kvctl::StepOutcome;
using kvctl::StepRequest;

using Ids = std::vector<int64_t>;
using Kept = std::vector<std::vector<int32_t>>;

/*! \brief One forward of n tokens of one sequence. */
void Forward(RecurrentTable* table, int64_t id, int32_t n, StepOutcome outcome,
             bool pending = false, const int32_t* parents = nullptr) {
  table->BeginForward({{id, n, pending, parents}});
  table->EndForward(outcome);
}

bool Consistent(const RecurrentTable& table) {
  const std::vector<int32_t> counts = table.CountReferences();
  int32_t free = 0;
  for (size_t state_index = 0; state_index < counts.size(); ++state_index) {
    if (counts[state_index] != table.pool().ref_count(static_cast<int32_t>(state_index)))
      return false;
    free += counts[state_index] == 0;
  }
  return free == table.pool().num_free();
}

}  // namespace

TEST(recurrent_popn_lands_in_the_middle_of_a_chunk) {
  RecurrentTable table({40, 2, 8});
  table.Add(7);
  Forward(&table, 7, 5, StepOutcome::kSteps);
  const std::vector<int32_t> state_indices = table.step().row_state_indices;
  EXPECT_EQ(table.PopN(7, 2), 0);
  EXPECT_EQ(table.Get(7).length(), 3);
  EXPECT_EQ(table.Get(7).history.back().state_index, state_indices[2]);
  EXPECT_EQ(table.PopN(7, 3), 0);
  EXPECT_EQ(table.Get(7).history.back().state_index, 0);  // the initial state
  EXPECT(Consistent(table));
}

TEST(recurrent_restart_goes_further_back_than_the_history_and_keeps_checkpoints) {
  RecurrentTable table({40, 2, 2});
  table.Add(7);
  Forward(&table, 7, 5, StepOutcome::kSteps);
  const int32_t last = table.Get(7).history.back().state_index;
  const int64_t checkpoint = table.MakeCheckpoint(7);
  table.Restart(7);
  EXPECT_EQ(table.Get(7).total(), 0);
  EXPECT_EQ(table.Get(7).history.back().state_index, 0);  // the initial state
  EXPECT(Consistent(table));
  table.Rollback(7, checkpoint);
  EXPECT_EQ(table.Get(7).length(), 5);
  EXPECT_EQ(table.Get(7).history.back().state_index, last);
  EXPECT(Consistent(table));
}

TEST(recurrent_without_steps_it_lands_before_the_chunk) {
  RecurrentTable table({40, 2, 8});
  table.Add(7);
  Forward(&table, 7, 2, StepOutcome::kFinal);
  const int32_t before = table.step().row_state_indices[1];
  Forward(&table, 7, 5, StepOutcome::kFinal);
  EXPECT_EQ(table.PopN(7, 2), 3);
  EXPECT_EQ(table.Get(7).length(), 2);
  EXPECT_EQ(table.Get(7).history.back().state_index, before);
  EXPECT_EQ(table.PopN(7, 1), 1);
  EXPECT_EQ(table.Get(7).length(), 0);
  EXPECT(Consistent(table));
}

TEST(recurrent_history_is_bounded_in_tokens) {
  RecurrentTable table({40, 2, 3});
  table.Add(0);
  for (int32_t i = 0; i < 10; ++i) Forward(&table, 0, 1, StepOutcome::kSteps);
  EXPECT_EQ(table.EarliestPosition(0), 7);
  EXPECT_EQ(table.Get(0).history.size(), size_t{4});
  EXPECT_ERROR(table.PopN(0, 4), kValue,
               "sequence 0 of length 10 cannot go back to position 6; the states kept reach back "
               "to position 7 (max_history is 3 tokens)");
  EXPECT_EQ(table.PopN(0, 3), 0);
  EXPECT_ERROR(table.PopN(0, 1), kValue, "reach back to position 7");
  EXPECT_ERROR(table.PopN(0, 8), kValue, "within [0, 7]");
  EXPECT_ERROR(table.PopN(0, -1), kValue, "got -1");
}

TEST(recurrent_a_long_chunk_keeps_only_what_a_rollback_needs) {
  RecurrentTable table({10, 1, 3});
  table.Add(0);
  Forward(&table, 0, 100, StepOutcome::kSteps);
  EXPECT_EQ(table.Get(0).history.size(), size_t{4});
  EXPECT_EQ(table.step().row_state_indices[95], -1);
  EXPECT(table.step().row_state_indices[96] > 0);
  EXPECT_EQ(table.PopN(0, 3), 0);
  EXPECT_EQ(table.Get(0).length(), 97);
}

TEST(recurrent_short_states_drop_the_oldest_history_first) {
  RecurrentTable table({5, 2, 8});
  table.Add(0);
  table.Add(1);
  Forward(&table, 0, 3, StepOutcome::kSteps);
  Forward(&table, 1, 3,
          StepOutcome::kSteps);  // 1 state too few: the oldest ones are dropped, of either
  EXPECT_EQ(table.EarliestPosition(0), 2);
  EXPECT_EQ(table.Get(1).length(), 3);
  EXPECT_ERROR(table.PopN(0, 2), kValue, "reach back to position 2");
  EXPECT(Consistent(table));
  // The present states of both cannot go: 3 of 5 states are the most.
  EXPECT_ERROR(Forward(&table, 0, 4, StepOutcome::kSteps), kOutOfPages,
               "keeps 4 states, and only 3 of the 5");
  EXPECT_EQ(table.EarliestPosition(0), 2);  // nothing was freed in vain
  EXPECT(!table.in_forward());
  Forward(&table, 0, 3, StepOutcome::kSteps);
  EXPECT_EQ(table.Get(0).length(), 6);
}

TEST(recurrent_tree_grown_in_two_steps_commits_any_path) {
  // 0 - 1 - 3      the second step adds 3, 4 and 5
  //   \ 2 - 4
  //       \ 5
  RecurrentTable table({40, 2, 8});
  table.Add(3);
  Forward(&table, 3, 2, StepOutcome::kSteps);
  const int32_t committed = table.Get(3).history.back().state_index;
  const std::vector<int32_t> first = {-1, 0, 0};
  table.BeginForward({{3, 3, true, first.data()}});
  EXPECT(table.step().row_sources == (std::vector<int32_t>{-1, 0, 0}));
  EXPECT(table.step().root_state_indices == (std::vector<int32_t>{committed}));
  EXPECT(!table.step().all_chains());
  EXPECT_ERROR(table.EndForward(StepOutcome::kFinal), kInternal, "no final state");
  table.EndForward(StepOutcome::kSteps);
  const std::vector<int32_t> second = {1, 2, 2};
  table.BeginForward({{3, 3, true, second.data()}});
  EXPECT(table.step().row_sources == (std::vector<int32_t>{-1, -2, -2}));
  EXPECT(table.step().row_roots == (std::vector<int32_t>{0, 1, 1}));
  EXPECT_EQ(table.step().root_state_indices[1], table.Get(3).pending[2].state_index);
  const std::vector<int32_t> state_indices = table.step().row_state_indices;
  table.EndForward(StepOutcome::kSteps);
  EXPECT_ERROR(table.Commit({3}, {{0, 1, 4}}), kValue, "node 4 of sequence 3 hangs on 2, not on 1");
  EXPECT_ERROR(table.Commit({3}, {{0, 6}}), kIndex, "6 pending tokens, there is no node 6");
  EXPECT_EQ(table.Get(3).num_pending(), 6);
  EXPECT_EQ(table.Commit({3}, {{0, 2, 5}})[0], 0);
  EXPECT_EQ(table.Get(3).length(), 5);
  EXPECT_EQ(table.Get(3).history.back().state_index, state_indices[2]);
  EXPECT_EQ(table.PopN(3, 2), 0);  // and back into the path
  EXPECT_EQ(table.Get(3).length(), 3);
  EXPECT(Consistent(table));
}

TEST(recurrent_commit_goes_by_the_ids_it_is_given) {
  RecurrentTable table({40, 3, 8});
  for (int64_t id : {5, 1, 8}) table.Add(id);
  table.BeginForward({{5, 2, true}, {1, 3, true}, {8, 4, true}});
  table.EndForward(StepOutcome::kSteps);
  table.Commit({8, 5}, {{0}, {0, 1}});
  EXPECT_EQ(table.Get(5).length(), 2);
  EXPECT_EQ(table.Get(1).length(), 0);
  EXPECT_EQ(table.Get(1).num_pending(), 3);
  EXPECT_EQ(table.Get(8).length(), 1);
  EXPECT_ERROR(table.Commit({1, 9}, {{}, {}}), kKey, "no sequence 9");
  EXPECT_ERROR(table.Commit({1, 1}, {{}, {}}), kValue, "more than once");
  EXPECT_EQ(table.Get(1).num_pending(), 3);
}

TEST(recurrent_pending_chunk_without_steps_is_run_again) {
  RecurrentConfig config{40, 2, 8};
  config.keep_steps = false;
  RecurrentTable table(config);
  table.Add(0);
  Forward(&table, 0, 2, StepOutcome::kFinal);
  Forward(&table, 0, 4, StepOutcome::kFinal, true);
  EXPECT_EQ(table.PlanCommit({0}, {{0, 1, 2}})[0], 3);
  EXPECT_EQ(table.Commit({0}, {{0, 1, 2}})[0], 3);
  EXPECT_EQ(table.Get(0).length(), 2);
  Forward(&table, 0, 4, StepOutcome::kFinal, true);
  const int32_t last = table.step().row_state_indices[3];
  EXPECT_EQ(table.Commit({0}, {{0, 1, 2, 3}})[0], 0);
  EXPECT_EQ(table.Get(0).length(), 6);
  EXPECT_EQ(table.Get(0).history.back().state_index, last);
  const int32_t parents[] = {1};
  Forward(&table, 0, 3, StepOutcome::kFinal, true);
  EXPECT_ERROR(Forward(&table, 0, 1, StepOutcome::kFinal, true, parents), kValue,
               "no state is kept after pending node 1");
  EXPECT(Consistent(table));
}

TEST(recurrent_fork_at_any_kept_position) {
  RecurrentTable table({40, 4, 4});
  table.Add(0);
  Forward(&table, 0, 6, StepOutcome::kSteps);
  const std::vector<int32_t> state_indices = table.step().row_state_indices;
  const int32_t free = table.pool().num_free();
  EXPECT_EQ(table.Fork(0, 1, 4), 0);
  EXPECT_EQ(table.Get(1).length(), 4);
  EXPECT_EQ(table.Get(1).history.back().state_index, state_indices[3]);
  EXPECT_EQ(table.Fork(0, 2, -1), 0);
  EXPECT_EQ(table.Fork(0, 3, 0), 0);
  EXPECT_EQ(table.Get(3).length(), 0);
  EXPECT_EQ(table.pool().num_free(), free);  // shared, not copied
  EXPECT_ERROR(table.Fork(0, 9, 6), kRuntime, "holds 4 sequences");
  table.Remove(3);
  EXPECT_ERROR(table.Fork(0, 9, 1), kValue, "cannot go back to position 1");
  EXPECT_ERROR(table.Fork(0, 9, 7), kIndex, "within [0, 6]");
  EXPECT_ERROR(table.Fork(0, 1, 6), kValue, "sequence 1 is already");
  table.Remove(0);
  EXPECT_EQ(table.PopN(2, 3), 0);  // the child has the history too
  EXPECT(Consistent(table));
}

TEST(recurrent_abort_and_carry) {
  RecurrentTable table({40, 2, 4});
  table.Add(0);
  Forward(&table, 0, 2, StepOutcome::kSteps);
  const int32_t state_index = table.Get(0).history.back().state_index;
  table.BeginForward({{0, 3}});
  EXPECT_ERROR(table.PopN(0, 1), kRuntime, "between begin_forward and end_forward");
  EXPECT_ERROR(table.BeginForward({{0, 1}}), kRuntime, "between begin_forward and end_forward");
  table.AbortForward();
  EXPECT_EQ(table.Get(0).length(), 2);
  EXPECT_ERROR(table.EndForward(StepOutcome::kSteps), kRuntime, "no forward is in flight");
  Forward(&table, 0, 2, StepOutcome::kNothing);  // the model set nothing: the state stays
  EXPECT_EQ(table.Get(0).length(), 4);
  EXPECT_EQ(table.Get(0).history.back().state_index, state_index);
  Forward(&table, 0, 2, StepOutcome::kNothing, true);
  EXPECT_EQ(table.Commit({0}, {{0}})[0], 0);
  EXPECT_EQ(table.Get(0).history.back().state_index, state_index);
  EXPECT(Consistent(table));
}

TEST(recurrent_checkpoint_outlives_the_history) {
  RecurrentTable table({40, 2, 2});
  table.Add(0);
  table.Add(1);
  Forward(&table, 0, 3, StepOutcome::kSteps);
  const int32_t state_index = table.Get(0).history.back().state_index;
  const int64_t early = table.MakeCheckpoint(0);
  for (int32_t i = 0; i < 10; ++i) Forward(&table, 0, 1, StepOutcome::kSteps);
  Forward(&table, 0, 3, StepOutcome::kSteps, true);
  const int64_t late = table.MakeCheckpoint(0);
  EXPECT_ERROR(table.Rollback(1, early), kValue, "made of sequence 0, not of sequence 1");
  table.Rollback(0, early);
  EXPECT_EQ(table.Get(0).length(), 3);
  EXPECT_EQ(table.Get(0).num_pending(), 0);
  EXPECT_EQ(table.Get(0).history.back().state_index, state_index);
  table.Rollback(0, late);
  EXPECT_EQ(table.Get(0).length(), 13);
  EXPECT_EQ(table.Get(0).num_pending(), 3);
  table.ReleaseCheckpoint(late);
  table.ReleaseCheckpoint(late);  // no error
  EXPECT(Consistent(table));
  table.Remove(0);
  EXPECT_ERROR(table.Rollback(1, early), kValue, "gone with the sequence");
  EXPECT(Consistent(table));
}

TEST(recurrent_rollback_does_not_mix_two_pasts) {
  // A state of another past must not survive a rollback as if it were this one's.
  RecurrentTable table({60, 1, 40});
  table.Add(0);
  Forward(&table, 0, 5, StepOutcome::kFinal);
  Forward(&table, 0, 5, StepOutcome::kFinal);
  const int64_t b = table.MakeCheckpoint(0);  // at 10
  table.PopN(0, 5);                           // at 5
  for (int32_t i = 0; i < 7; ++i) Forward(&table, 0, 1, StepOutcome::kSteps);
  const int64_t c = table.MakeCheckpoint(0);  // at 12, over another 6 .. 12
  table.Rollback(0, b);
  table.Rollback(0, c);
  EXPECT_EQ(table.Get(0).length(), 12);
  EXPECT_EQ(table.PopN(0, 2), 5);  // b's state at 10 is not c's: back to 5
  EXPECT_EQ(table.Get(0).length(), 5);
}
