#include <vector>

#include "check.h"
#include "core/cache/sequence_table.h"

using kvctl::CopyPlan;
using kvctl::SequenceRecord;
using kvctl::SequenceTable;
using kvctl::StepRequest;

namespace {

void Grow(SequenceTable* table, int64_t id, int32_t rows) {
  CopyPlan moves;
  table->BeginForward({{id, rows}}, &moves);
  table->EndForward();
}

SequenceRecord Windowed() {
  SequenceTable table({16, 4, 64, 0});
  table.Add(0);
  table.SetWindow(0, {6, 2, 3});
  Grow(&table, 0, 29);
  return table.Record(0, "save");  // tokens 4 to 19 are evicted
}

}  // namespace

TEST(RestoreTakesAsManyPagesAsAreHeld) {
  const SequenceRecord record = Windowed();
  EXPECT_EQ(record.evicted.begin, 4);
  EXPECT_EQ(record.evicted.end, 20);
  for (int32_t page_size : {1, 3, 4, 7, 16, 32}) {
    SequenceTable table({40, page_size, 64, 0});
    table.Restore(5, record);
    int32_t held = 0;
    for (int32_t page = 0; page * page_size < 29; ++page) {
      held += page * page_size < 4 || (page + 1) * page_size > 20;
    }
    EXPECT_EQ(40 - table.pool().num_free(), held);
    // The next query sees positions above 29 - 6. It may still after a rollback of three tokens.
    table.PopN(5, 3);
    EXPECT_ERROR(table.PopN(5, 8), kValue, "has evicted");
    Grow(&table, 5, 30);
    EXPECT(table.CountReferences()[0] == table.pool().ref_count(0));
    EXPECT(table.Get(5).evicted.end >= 29 + 27 - 6 - 3 - 2 * page_size);
    table.Remove(5);
    EXPECT_EQ(table.pool().num_free(), 40);
  }
}

TEST(RestoredWindowsRememberEvictedTokensAcrossCheckpoints) {
  SequenceTable table({40, 16, 64, 0});
  table.Restore(0, Windowed());  // page 0 holds tokens 0 to 3; 4 to 15 are evicted
  auto checkpoint = table.MakeCheckpoint(0);
  Grow(&table, 0, 2);
  table.PopN(0, 3);
  table.Rollback(0, checkpoint.get());
  EXPECT_EQ(table.Get(0).evicted.begin, 4);
  EXPECT_EQ(table.Get(0).evicted.end, 20);
  EXPECT_ERROR(table.PopN(0, 10), kValue, "has evicted");
  table.Fork(0, 1, 27);
  EXPECT_ERROR(table.Fork(0, 2, 21), kValue, "has evicted");
  EXPECT_EQ(table.Get(1).evicted.end, 20);
}

TEST(RestoreRefusesRecordsThatNoTableMakes) {
  SequenceTable table({8, 4, 64, 2});
  const auto refused = [&](auto change, kvctl::ErrorKind kind, const char* part) {
    SequenceRecord record = Windowed();
    change(&record);
    check::ExpectError([&] { table.Restore(0, record); }, kind, part, __FILE__, __LINE__);
    EXPECT_EQ(table.num_sequences(), 0u);
    EXPECT_EQ(table.pool().num_free(), 8);
  };
  using kvctl::ErrorKind;
  refused([](auto* r) { r->num_committed = -1; }, ErrorKind::kValue, "length is negative");
  refused([](auto* r) { r->num_committed = 1000; }, ErrorKind::kValue, "next position");
  refused([](auto* r) { r->num_committed = r->next_position = 1000; }, ErrorKind::kOutOfPages,
          "load_sequence needs 246 pages and 8 of 8");
  refused([](auto* r) { r->next_position = 30; }, ErrorKind::kValue, "next position");
  refused([](auto* r) { r->window.sinks = -1; }, ErrorKind::kValue, "window is negative");
  refused([](auto* r) { r->window = {}; }, ErrorKind::kValue, "window shows evicted");
  refused([](auto* r) { r->window.size = 11; }, ErrorKind::kValue, "window shows evicted");
  refused([](auto* r) { r->window.sinks = 5; }, ErrorKind::kValue, "window shows evicted");
  refused([](auto* r) { r->evicted = {20, 4}; }, ErrorKind::kValue, "that it evicts");
  refused([](auto* r) { r->evicted = {4, 30}; }, ErrorKind::kValue, "that it evicts");
  refused([](auto* r) { r->positions = std::make_shared<std::vector<int32_t>>(3); },
          ErrorKind::kValue, "as many positions");
  refused([](auto* r) { r->positions = std::make_shared<std::vector<int32_t>>(29, -1); },
          ErrorKind::kValue, "a position");
  table.Add(0);
  EXPECT_ERROR(table.Restore(0, Windowed()), kValue, "already has a sequence 0");
}

TEST(PositionsStayCountable) {
  SequenceTable table({8, 4, 64, 2});
  CopyPlan moves;
  table.Add(0);
  const std::vector<int32_t> far{1, 1 << 30};
  EXPECT_ERROR(table.BeginForward({{0, 2, false, nullptr, far.data()}}, &moves), kValue,
               "positions[1] of sequence 0 is 1073741824; it must be in [0, 2^30)");
}
