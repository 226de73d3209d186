/*!
 * \file core/cache/checkpoint.h
 * \brief A point that a sequence can return to exactly.
 */
#ifndef KVCTL_CORE_CACHE_CHECKPOINT_H_
#define KVCTL_CORE_CACHE_CHECKPOINT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "core/cache/sequence.h"

namespace kvctl {

class SequenceTable;

/*!
 * \brief A checkpoint of one sequence, made by SequenceTable::MakeCheckpoint in constant time (plus
 * the size of its pending region).
 *
 * Making one takes no page. As long as its sequence only grows, the checkpoint shares all of the
 * sequence's pages by being a prefix of it. An operation that would destroy columns below the
 * checkpoint's length first hands the pages that hold them over (SequenceTable::Preserve): only
 * then does the checkpoint hold pages, and just those.
 */
class Checkpoint {
 public:
  ~Checkpoint();
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  int64_t sequence_id() const { return sequence_id_; }
  int32_t kv_len() const { return num_committed_ + pending_.size(); }
  /*! \brief False once its sequence has been removed. */
  bool valid() const { return table_ != nullptr; }

 private:
  friend class SequenceTable;
  Checkpoint() = default;

  SequenceTable* table_ = nullptr;  // null once the sequence or the table is gone
  Sequence* sequence_ = nullptr;
  int64_t sequence_id_ = 0;
  int32_t num_committed_ = 0;
  int32_t next_position_ = 0;
  PositionList positions_;
  EvictedRange evicted_;  // when it was made; what was let go since shows in its pages
  PendingRegion pending_;
  int32_t num_shared_pages_ = 0;      // the sequence's first pages are still ours as well
  std::vector<int32_t> saved_pages_;  // the pages after those, held by us
};

using CheckpointPtr = std::shared_ptr<Checkpoint>;

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_CHECKPOINT_H_
