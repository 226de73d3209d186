/*!
 * \file core/cache/shared_runs.h
 * \brief Finds sequences of a step that share pages, so that attention can read those once.
 */
#ifndef KVCTL_CORE_CACHE_SHARED_RUNS_H_
#define KVCTL_CORE_CACHE_SHARED_RUNS_H_

#include <cstdint>
#include <vector>

#include "core/cache/step_plan.h"

namespace kvctl {

/*! \brief Chunks [begin, end) of keys that lie on the same pages in several sequences. */
struct SharedRun {
  int32_t begin, end;
  std::vector<int32_t> sequences;  //!< at least two indices into the step's sequences, ascending
};

/*!
 * \brief Finds the prefixes that sequences share.
 *
 * Forks of forks yield several runs: one of all sequences, then one of each group that continues to
 * share. The runs of a sequence follow one another without a gap from chunk 0.
 *
 * \param sequences [limits.size()]
 * \param limits Per sequence, how many of its first chunks may be shared.
 * \param chunk_keys Keys in a chunk.
 */
std::vector<SharedRun> FindSharedRuns(const SequencePlan* sequences,
                                      const std::vector<int32_t>& limits, int32_t page_size,
                                      int32_t chunk_keys);

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_SHARED_RUNS_H_
