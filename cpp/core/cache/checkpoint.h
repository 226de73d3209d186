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
 * \brief A checkpoint of one sequence. SequenceTable::MakeCheckpoint makes it in constant time,
 * plus the size of the pending region.
 *
 * Making one takes no page: while its sequence only grows, the checkpoint is a prefix of it and
 * shares its pages. An operation that would destroy KV below the checkpoint's length first hands
 * over the pages that hold it (SequencePages::Preserve). The checkpoint then holds those pages, and
 * no others.
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
  friend class SequencePages;
  friend class SequenceTable;
  Checkpoint() = default;

  SequenceTable* table_ = nullptr;  // null once the sequence or the table is removed
  Sequence* sequence_ = nullptr;
  int64_t sequence_id_ = 0;
  int32_t num_committed_ = 0;
  int32_t next_position_ = 0;
  PositionList positions_;
  EvictedRange evicted_;  // when it was made; pages evicted since are -1
  PendingRegion pending_;
  int32_t num_shared_pages_ = 0;      // the first pages of the sequence, still shared with it
  std::vector<int32_t> saved_pages_;  // the pages after those, which the checkpoint holds
};

using CheckpointPtr = std::shared_ptr<Checkpoint>;

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_CHECKPOINT_H_
