/*!
 * \file core/cache/shared_runs.h
 * \brief Which sequences of a step lie on the same pages, so that attention can read those once.
 */
#ifndef KVCTL_CORE_CACHE_SHARED_RUNS_H_
#define KVCTL_CORE_CACHE_SHARED_RUNS_H_

#include <cstdint>
#include <vector>

#include "core/cache/step_plan.h"

namespace kvctl {

/*! \brief Chunks [begin, end) of columns that lie on the same pages in several sequences. */
struct SharedRun {
  int32_t begin, end;
  std::vector<int32_t> sequences;  //!< at least two indices into the step's sequences, ascending
};

/*!
 * \brief Finds what sequences share from their beginning on.
 *
 * Forks of forks share in steps: a run of all of them, then runs of those that go on together. The
 * runs of a sequence follow one another without a gap from chunk 0.
 *
 * \param sequences [limits.size()]
 * \param limits Per sequence, how many of its first chunks may be shared at all.
 * \param chunk_columns Columns in a chunk.
 */
std::vector<SharedRun> FindSharedRuns(const SequencePlan* sequences,
                                      const std::vector<int32_t>& limits, int32_t page_size,
                                      int32_t chunk_keys);

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_SHARED_RUNS_H_
