/*!
 * \file kernels/cpu/attention/attention_schedule.h
 * \brief Splits the work of one attention call into units.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_SCHEDULE_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_SCHEDULE_H_

#include <cstdint>
#include <vector>

#include "core/cache/shared_runs.h"
#include "kernels/attention.h"
#include "kernels/cpu/attention/attention_unit.h"

namespace kvctl {

/*! \brief Sizes of a call, except those that depend on how its queries are split. */
AttentionShape ShapeOf(const AttentionArgs& args);

/*! \brief Splits every sequence by KV head, queries and chunks. Where several sequences share
 * pages, one unit has the queries of all of them for those chunks. */
class AttentionSchedule {
 public:
  AttentionSchedule(const AttentionArgs& args, int32_t num_threads);

  /*! \brief Queries of a sequence whose chunks are split over several units. */
  struct Merge {
    AttentionUnit unit;
    int32_t num_chunks;
  };

  const AttentionShape& shape() const { return shape_; }
  const std::vector<AttentionUnit>& units() const { return units_; }
  const std::vector<Merge>& merges() const { return merges_; }
  /*! \brief Floats that Place needs. */
  int64_t partial_floats() const { return partial_floats_; }
  int64_t work() const { return work_; }  //!< products
  /*! \brief Assigns memory to the partial results of the units. */
  void Place(float* partials);

 private:
  /*! \brief Finds the runs that sequences share for a KV head, unless they are those of the
   * previous head. */
  void FindShared(int32_t head);
  /*! \brief Splits a sequence for a KV head, or for several heads from it on; the others then add
   * nothing. */
  void CutSequence(int32_t s, int32_t head, int32_t shared_chunks);
  /*! \brief Splits the chunks from `first` on of a unit's queries. */
  void CutChunks(AttentionUnit unit, int32_t first, int32_t chunks, int32_t pieces);
  /*! \brief Makes one or a few units for a run's chunks and the queries of all its sequences. */
  void CutShared(const SharedRun& run, int32_t head);

  const AttentionArgs& args_;
  AttentionShape shape_;
  const int32_t token_heads_;  // KV heads in a unit of a sequence with one new token
  int32_t pieces_ = 1;
  std::vector<AttentionUnit> units_;
  std::vector<Merge> merges_;
  std::vector<int32_t> limits_;         // [sequences]: first chunks that may be shared
  std::vector<SharedRun> runs_;         // of the current KV head
  std::vector<int32_t> shared_chunks_;  // [sequences]: first chunks that lie in runs_
  std::vector<int32_t> merge_of_;       // [sequences] of the current KV head; -1: none
  std::vector<SharedToken> shared_;     // of all shared units, one after another
  int64_t partial_floats_ = 0;
  int64_t work_ = 0;
};

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_SCHEDULE_H_
