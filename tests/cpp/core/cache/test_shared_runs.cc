#include "check.h"
#include "core/cache/shared_runs.h"

namespace kvctl {
namespace {

/*! \brief Sequences of pages of 2 tokens, chunks of 4. */
std::vector<SharedRun> Find(const std::vector<std::vector<int32_t>>& pages,
                            const std::vector<int32_t>& limits) {
  std::vector<SequencePlan> sequences(pages.size());
  for (size_t s = 0; s < pages.size(); ++s) sequences[s].pages = pages[s].data();
  return FindSharedRuns(sequences.data(), limits, 2, 4);
}

}  // namespace

TEST(ForksOfForksShareInSteps) {
  const std::vector<std::vector<int32_t>> pages = {{1, 2, 3, 4, 5, 6},
                                                   {1, 2, 3, 4, 7, 8},
                                                   {9, 10, 11, 12, 13, 14},
                                                   {1, 2, 15, 16, 17, 18},
                                                   {1, 2, 3, 4, 5, 6}};
  const std::vector<SharedRun> runs = Find(pages, {3, 3, 3, 3, 3});
  EXPECT_EQ(runs.size(), size_t{3});
  EXPECT(runs[0].sequences == std::vector<int32_t>({0, 1, 3, 4}));
  EXPECT(runs[0].begin == 0 && runs[0].end == 1);
  EXPECT(runs[1].sequences == std::vector<int32_t>({0, 1, 4}));
  EXPECT(runs[1].begin == 1 && runs[1].end == 2);
  EXPECT(runs[2].sequences == std::vector<int32_t>({0, 4}));
  EXPECT(runs[2].begin == 2 && runs[2].end == 3);
}

TEST(OnlyWholeChunksWithinTheLimitsAreShared) {
  EXPECT(Find({{1, 2}, {1, 3}}, {1, 1}).empty());    // half a chunk
  EXPECT(Find({{1, -1}, {1, -1}}, {1, 1}).empty());  // an evicted page
  EXPECT(Find({{1, 2}, {3, 4}}, {1, 1}).empty());    // nothing
  EXPECT(Find({{1, 2}, {1, 2}}, {0, 1}).empty());    // one sees less than a chunk
  EXPECT(Find({{1, 2}}, {1}).empty());
  const std::vector<SharedRun> runs = Find({{1, 2, 3, 4}, {1, 2, 3, 4}, {1, 2, 3, 4}}, {2, 1, 2});
  EXPECT_EQ(runs.size(), size_t{2});
  EXPECT_EQ(runs[0].end, 1);
  EXPECT(runs[1].begin == 1 && runs[1].sequences == std::vector<int32_t>({0, 2}));
}

}  // namespace kvctl
