/*!
 * \file core/mask/mask_positions.h
 * \brief Masks defined by logical positions, as ranges of keys.
 */
#ifndef KVCTL_CORE_MASK_MASK_POSITIONS_H_
#define KVCTL_CORE_MASK_MASK_POSITIONS_H_

#include <cstdint>
#include <vector>

#include "core/mask/mask_builder.h"
#include "core/mask/mask_plan.h"

namespace kvctl {

/*! \brief Ranges of keys, query after query. */
class RangeLists {
 public:
  /*! \brief Appends a range to the query's list. Empty ranges are dropped, adjacent ones joined. */
  void Add(KeyRange range) {
    if (range.begin >= range.end) return;
    if (static_cast<int32_t>(ranges_.size()) > offsets_.back() &&
        ranges_.back().end >= range.begin) {
      ranges_.back().end = std::max(ranges_.back().end, range.end);
    } else {
      ranges_.push_back(range);
    }
  }
  void EndQuery() { offsets_.push_back(static_cast<int32_t>(ranges_.size())); }
  void MakePlan(const SequencePlan& sequence, MaskPlan* plan) const {
    PlanFromRanges(offsets_.data(), ranges_.data(), sequence.num_query_tokens, sequence.kv_len(),
                   plan);
  }

 private:
  std::vector<int32_t> offsets_{0};
  std::vector<KeyRange> ranges_;
};

/*! \brief Logical positions of a sequence's keys. Those of committed keys do not descend. */
class LogicalPositions {
 public:
  /*! \throws Error kValue if committed positions, which may be given, descend. */
  explicit LogicalPositions(const SequencePlan& sequence);

  /*! \brief The keys that a window shows to a query: in a chain the causal ones, in a tree siblings
   * too. */
  void AddWindow(int32_t query, int32_t size, int32_t sinks, RangeLists* lists) const;
  /*! \brief The keys before `length`; in a chain also those up to the query's own. */
  void AddPrefix(int32_t query, int32_t length, RangeLists* lists) const;

 private:
  int32_t OfPending(int32_t pending) const {
    return sequence_.next_position + (sequence_.depths ? sequence_.depths[pending] : pending);
  }
  /*! \brief Number of keys (in a tree: committed ones) whose position is below the bound. */
  int32_t CountBelow(int64_t bound) const;

  const SequencePlan& sequence_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_MASK_MASK_POSITIONS_H_
