// Fails each allocation of an operation in turn: the table is unchanged, and the operation, called
// again, succeeds.
#include <functional>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "check.h"
#include "core/failing_allocations.h"
#include "table_steps.h"

using kvctl::CheckpointPtr;
using kvctl::CopyPlan;
using kvctl::Sequence;
using kvctl::SequenceTable;

using kvctl::allocations_left;

namespace {

/*! \brief Sequence 0 is forked by 1 in the middle of a page and has a pending tree, 2 has a window
 * that has evicted pages, 3 has explicit positions; 0, 2 and 3 have checkpoints. */
struct World : kvctl::TableSteps {
  std::vector<CheckpointPtr> checkpoints;

  World() : TableSteps({40, 4, 64, 8}) {
    for (int64_t id : {0, 2, 3}) {
      table.Add(id);
      Chain(id, 14);
    }
    table.Fork(0, 1, -1);
    Tree(0, {-1, 0, 0, 2, 2, 4});
    Tree(1, {-1, -1, 1});
    table.SetWindow(2, {5, 1, 2});
    moves.clear();
    table.Evict(3, {0, 3, 4, 9, 10, 11}, false, &moves);
    for (int64_t id : {0, 2, 3}) checkpoints.push_back(table.MakeCheckpoint(id));
    Chain(3, 2);
  }

  /*! \brief The complete state of the table. */
  std::string State() const {
    std::ostringstream text;
    const auto list = [&](const std::vector<int32_t>& numbers) {
      for (int32_t number : numbers) text << number << ' ';
      text << "| ";
    };
    for (int64_t id : table.SequenceIds()) {
      const Sequence& sequence = table.Get(id);
      text << id << ": " << sequence.num_committed << ' ' << sequence.next_position << ' '
           << sequence.evicted.begin << ' ' << sequence.evicted.end << ' '
           << sequence.checkpoints.size() << ' ' << sequence.window.size << ' '
           << sequence.pending.chain << ' ' << sequence.pending.num_written << " | ";
      list(sequence.pages);
      list(sequence.pending.parents);
      list(sequence.pending.depths);
      list(sequence.pending.positions);
      for (int32_t i = 0; i < sequence.num_committed; ++i) text << sequence.PositionOf(i) << ' ';
      text << '\n';
    }
    const std::vector<int32_t> held = table.CountReferences();
    for (int32_t page = 0; page < table.pool().size(); ++page) {
      text << held[page] << (held[page] == table.pool().ref_count(page) ? " " : "! ");
    }
    text << table.pool().num_free() << ' ' << table.in_forward() << '\n';
    list(table.in_forward() ? table.plan().slots : std::vector<int32_t>());
    return text.str();
  }
};

using Operation = std::function<void(World&)>;

void FailEverywhere(const Operation& prepare, const Operation& operation) {
  World expected;
  prepare(expected);
  operation(expected);
  bool failed = true;
  for (int64_t left = 0; failed && left < 1000; ++left) {
    World world;
    prepare(world);
    world.moves.clear();
    const std::string before = world.State();
    failed = false;
    allocations_left = left;
    try {
      operation(world);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    allocations_left = -1;
    if (failed) {
      EXPECT_EQ(world.State(), before);
      world.moves.clear();
      operation(world);
    }
    EXPECT_EQ(world.State(), expected.State());
  }
  EXPECT(!failed);
}

void Nothing(World&) {}

}  // namespace

TEST(NoMemoryToAddOrFork) {
  FailEverywhere(Nothing, [](World& world) { world.table.Add(7); });
  FailEverywhere(Nothing, [](World& world) { world.table.Fork(0, 7, -1); });
  FailEverywhere(Nothing, [](World& world) { world.table.Fork(3, 7, 5); });
}

TEST(NoMemoryToBeginAStep) {
  FailEverywhere(Nothing, [](World& world) {
    const std::vector<int32_t> parents = {3, 5, -1};
    world.table.BeginForward({{2, 7}, {0, 3, true, parents.data()}, {3, 9}}, &world.moves);
  });
}

TEST(NoMemoryToEndAStep) {
  const std::vector<int32_t> positions = {90, 91, 95, 96, 97};
  const auto begin = [&](World& world) {
    world.moves.clear();
    world.table.BeginForward({{2, 7}, {3, 5, false, nullptr, positions.data()}}, &world.moves);
  };
  FailEverywhere(begin, [](World& world) { world.table.EndForward(); });
  FailEverywhere(begin, [](World& world) { world.table.AbortForward(nullptr); });
  FailEverywhere(
      [&](World& world) {
        world.table.Add(7);
        world.Chain(7, 4);
        world.moves.clear();
        world.table.BeginForward({{3, 9}, {7, 5, false, nullptr, positions.data()}}, &world.moves);
      },
      [](World& world) { world.table.EndForward(); });
}

TEST(NoMemoryToCommit) {
  FailEverywhere(Nothing, [](World& world) {
    world.table.Commit({1, 0}, {{1, 2}, {0, 2, 4, 5}}, &world.moves);
  });
  FailEverywhere(Nothing, [](World& world) { world.table.DropPending(0); });
  FailEverywhere(Nothing, [](World& world) { world.table.DropPending({1, 0}); });
}

TEST(NoMemoryToPop) {
  FailEverywhere(Nothing, [](World& world) { world.table.PopN(0, 11); });
  FailEverywhere(Nothing, [](World& world) { world.table.PopN(3, 4); });
}

TEST(NoMemoryForACheckpointOrToReturn) {
  FailEverywhere(Nothing,
                 [](World& world) { world.checkpoints.push_back(world.table.MakeCheckpoint(0)); });
  const auto rewrite = [](World& world) {
    world.table.PopN(0, 12);
    world.Chain(0, 20);
    world.table.PopN(3, 5);
  };
  FailEverywhere(rewrite,
                 [](World& world) { world.table.Rollback(0, world.checkpoints[0].get()); });
  FailEverywhere(rewrite,
                 [](World& world) { world.table.Rollback(3, world.checkpoints[2].get()); });
}

TEST(NoMemoryToEvict) {
  for (bool renumber : {false, true}) {
    FailEverywhere(Nothing, [=](World& world) {
      world.table.Evict(3, {0, 2, 4, 5, 7}, renumber, &world.moves);
    });
    FailEverywhere(Nothing, [=](World& world) {
      world.table.Evict(2, {0, 9, 12, 13}, renumber, &world.moves);
    });
  }
}

TEST(NoMemoryToRestore) {
  FailEverywhere(Nothing, [](World& world) {
    kvctl::SequenceRecord record = world.table.Record(3, "save");
    world.table.Restore(7, record);
  });
}
