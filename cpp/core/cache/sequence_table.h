/*!
 * \file core/cache/sequence_table.h
 * \brief All sequences of a cache over its pages: the host's metadata.
 */
#ifndef KVCTL_CORE_CACHE_SEQUENCE_TABLE_H_
#define KVCTL_CORE_CACHE_SEQUENCE_TABLE_H_

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "core/cache/checkpoint.h"
#include "core/cache/sequence.h"
#include "core/cache/step_plan.h"
#include "core/support/ref_counted_pool.h"
#include "kvctl/step_request.h"

namespace kvctl {

/*! \brief Copy a page, in every layer. */
struct PageCopy {
  int32_t source;
  int32_t target;
};

/*! \brief Copy one token's K and V, in every layer: slots are page * page_size + offset. */
struct SlotMove {
  int32_t source;
  int32_t target;
};

/*! \brief Rotate the K of one token from one rotary position to another, in every layer. */
struct KeyRotation {
  int32_t slot;
  int32_t from;
  int32_t to;
};

/*! \brief The copies that an operation on the table needs on the device: first the page copies,
 * then the slot moves in order, then the rotations. The target of a move is never the source of a
 * later one. */
struct CopyPlan {
  std::vector<PageCopy> pages;
  std::vector<SlotMove> slots;
  std::vector<KeyRotation> rotations;
  bool empty() const { return pages.empty() && slots.empty() && rotations.empty(); }
  void clear() {
    pages.clear();
    slots.clear();
    rotations.clear();
  }
};

/*! \brief The metadata of a sequence's committed part, to be restored in another cache. */
struct SequenceRecord {
  int32_t num_committed = 0;
  int32_t next_position = 0;
  PositionList positions;  //!< null: position = KV index
  SlidingWindow window;
  EvictedRange evicted;
};

/*! \brief Positions are below this, so that counting on from one stays within int32. */
constexpr int32_t kPositionLimit = 1 << 30;

/*! \brief Which pending nodes a commit may keep. */
enum class KeptNodes {
  kPath,  //!< a path from the committed context; nodes under a mask that is no tree, after any
  kAny,   //!< any, also nodes whose K and V were computed behind nodes that are dropped
};

struct TableConfig {
  int32_t num_pages;
  int32_t page_size;
  int32_t max_rows;           //!< the most new tokens in one step: the prefill chunk
  int32_t max_sequences = 0;  //!< 0: any number
};

/*!
 * \brief Sequences, their pages, and the step in flight.
 *
 * Every operation either succeeds, or throws and leaves the table unchanged. Operations that need
 * K/V data moved append to a CopyPlan, which the caller carries out before anything reads the
 * pages.
 */
class SequenceTable {
 public:
  explicit SequenceTable(const TableConfig& config);
  ~SequenceTable();
  SequenceTable(const SequenceTable&) = delete;
  SequenceTable& operator=(const SequenceTable&) = delete;

  // Queries.
  const TableConfig& config() const { return config_; }
  const RefCountedPool& pool() const { return pool_; }
  size_t num_sequences() const { return sequences_.size(); }
  int64_t total_reported_length() const;
  /*! \brief The ids of all sequences, ascending. */
  std::vector<int64_t> SequenceIds() const;
  bool Contains(int64_t id) const { return sequences_.count(id) > 0; }
  /*! \throws Error kKey if there is no such sequence. */
  const Sequence& Get(int64_t id) const;
  /*! \brief The slot of a token of a sequence: page * page_size + offset. */
  int32_t Slot(const Sequence& sequence, int32_t kv_index) const {
    return sequence.pages[kv_index / config_.page_size] * config_.page_size +
           kv_index % config_.page_size;
  }
  /*! \brief For each slot of the cache, whether it holds a token of a sequence or a checkpoint. */
  std::vector<bool> UsedSlots() const;
  /*! \brief Reference counts of all pages, recounted from the sequences: for checks in tests. */
  std::vector<int32_t> CountReferences() const;

  // Sequences.
  void Clear();
  void Add(int64_t id);
  void Remove(int64_t id);
  /*! \brief Makes `child` a copy of the first `position` tokens of `parent` (-1: all, pending ones
   * included). Shares every page; shared pages are copied on write. */
  void Fork(int64_t parent, int64_t child, int64_t position);
  /*! \brief Drops the last n tokens: pending nodes, the latest first, and then committed tokens. */
  void PopN(int64_t id, int64_t n);

  /*!
   * \brief Sets or replaces the sliding window of a sequence.
   * \throws Error kValue for invalid sizes, if tokens that the new window shows were evicted, or if
   * the sequence's positions descend.
   */
  void SetWindow(int64_t id, const SlidingWindow& window);
  /*! \brief Sets the window of sequences that are added later. \throws Error kValue as above. */
  void SetDefaultWindow(const SlidingWindow& window);

  /*!
   * \brief Keeps some committed tokens of a sequence without pending nodes and drops the others.
   *
   * Kept tokens are compacted into the sequence's own pages where no other holder exists; a new
   * page replaces a shared one. So a sequence that shares nothing needs no free page.
   * \param keep KV indices of the tokens to keep, ascending.
   * \param renumber The kept tokens get the positions 0, 1, 2, ... and their keys are rotated
   * there. Otherwise each keeps its position, and the next token gets the position it would have
   * had.
   */
  void Evict(int64_t id, const std::vector<int32_t>& keep, bool renumber, CopyPlan* moves);
  /*! \brief Throws what Evict would throw, except kOutOfPages. */
  void CheckEvict(int64_t id, const std::vector<int32_t>& keep) const;

  /*! \brief The metadata of a sequence's committed part; it must have no pending nodes. */
  SequenceRecord Record(int64_t id, const char* operation) const;
  /*!
   * \brief Adds a sequence that another table recorded; the caller writes its K and V.
   * \throws Error kValue for an inconsistent record.
   */
  void Restore(int64_t id, const SequenceRecord& record);

  // The step in flight.
  bool in_forward() const { return forward_.active; }
  /*! \throws Error kRuntime if a step is in flight. */
  void RequireNoForward(const char* operation) const;
  const StepPlan& plan() const { return forward_.plan; }
  /*!
   * \brief Reserves slots for the new tokens of every sequence, and plans the step.
   * \param requests The caller replaces a tree mask by its `parents`, and leaves a causal one out.
   * Other masks are not read: they say that pending nodes are no tree.
   */
  void BeginForward(const std::vector<StepRequest>& requests, CopyPlan* moves);
  /*! \brief Whether EndForward will commit tokens. */
  bool StepCommits() const;
  /*!
   * \brief Ends the step: committed appends are committed, pending ones stay pending.
   * \param all_layers_written Whether every layer has their K and V; otherwise they must all stay
   * pending, and cannot be committed.
   */
  void EndForward(bool all_layers_written = true);
  /*!
   * \brief Undoes the step in flight.
   * \param moves Receives what to move because the step may have written over it; nullptr if
   * neither the moves of BeginForward were carried out nor anything was written.
   */
  void AbortForward(CopyPlan* moves);

  // Pending nodes.
  /*!
   * \brief Commits, for each named sequence, the kept nodes of its pending region and drops the
   * others.
   * \param ids [n] the sequences, each at most once, in any order.
   * \param kept [n] indices into each pending region, ascending; their positions must continue the
   * sequence, and they must be what `which` says.
   */
  void Commit(const std::vector<int64_t>& ids, const std::vector<std::vector<int32_t>>& kept,
              CopyPlan* moves, KeptNodes which = KeptNodes::kPath);
  /*! \brief Drops the pending nodes of a sequence. */
  void DropPending(int64_t id);
  /*! \brief Drops the pending nodes of several sequences. */
  void DropPending(const std::vector<int64_t>& ids);

  // Checkpoints.
  CheckpointPtr MakeCheckpoint(int64_t id);
  /*! \brief Restores the sequence to its state when the checkpoint was made; the checkpoint stays
   * valid. */
  void Rollback(int64_t id, Checkpoint* checkpoint);

 private:
  friend class Checkpoint;

  /*! \brief What a step has reserved for one sequence, and what aborting it restores. */
  struct PlannedSequence {
    Sequence* sequence;
    int32_t append_length;
    bool pending;
    bool explicit_positions;  // committed at the plan's positions
    int32_t query_begin;
    int32_t old_num_pages;
    int32_t old_num_pending;
    int32_t copied_index;    // index of the page that was copied on write, or -1
    int32_t copied_page;     // the page it replaced
    PositionList positions;  // to install before explicit positions are committed, unless null
  };
  struct Forward {
    bool active = false;
    std::vector<PlannedSequence> sequences;
    StepPlan plan;
  };

  Sequence& Find(int64_t id);
  void CheckNewId(int64_t id) const;
  int32_t PagesFor(int32_t kv_len) const {
    return (kv_len + config_.page_size - 1) / config_.page_size;
  }
  /*! \brief Releases the pages past the first `count`. */
  void ShrinkPages(Sequence* sequence, int32_t count);
  void Retain(int32_t page) {
    if (page >= 0) pool_.Retain(page);
  }
  void Release(int32_t page) {
    if (page >= 0) pool_.Release(page);
  }
  /*! \brief Evicts the pages behind the window and its rollback window. */
  void EvictBehindWindow(Sequence* sequence);
  /*! \brief A state of a sequence to be checked against its window. */
  struct Held {
    EvictedRange evicted;
    int32_t kv_len;
    int32_t next_position;
    const PositionList& positions;
  };
  /*! \throws Error kValue if the window shows an evicted token. */
  void CheckHeld(int64_t id, const SlidingWindow& window, const Held& held,
                 const char* operation) const;
  /*! \brief CheckHeld for a sequence cut to its first `kv_len` tokens. */
  void CheckCut(const Sequence& sequence, int32_t kv_len, const char* operation) const;
  /*! \brief Keeps the first `kv_len` tokens and preserves checkpoints. */
  void TruncateKv(Sequence* sequence, int32_t kv_len);
  /*! \brief Reserves capacity so that Preserve(sequence, kv_index) does not allocate. */
  void MakeRoomToPreserve(Sequence* sequence, int32_t kv_index);
  /*! \brief Makes checkpoints hold the pages they need from `kv_index` on. Call it before KV from
   * there on is overwritten or dropped. */
  void Preserve(Sequence* sequence, int32_t kv_index);
  /*! \brief How many checkpoints Preserve(sequence, kv_index) will make holders of a page. */
  int32_t NumNewHolders(const Sequence& sequence, int32_t kv_index, int32_t page_index) const;
  /*! \brief Whether a page lies entirely in the evicted range. */
  bool IsEvictedPage(const EvictedRange& evicted, int32_t page_index) const {
    return page_index * config_.page_size >= evicted.begin &&
           (page_index + 1) * config_.page_size <= evicted.end;
  }
  /*! \brief Replaces a shared page by a copy that only this sequence holds. */
  void CopyOnWrite(Sequence* sequence, int32_t page_index, CopyPlan* moves);
  void Forget(Checkpoint* checkpoint);

  /*! \brief Finds a sequence of the batch begun by the last ++batch_mark_. A batch may name each
   * once. */
  Sequence& NameInBatch(int64_t id);
  /*! \throws Error kOutOfPages if the pool has fewer free pages than the step needs. */
  void CheckPagesForStep(const std::vector<StepRequest>& requests);
  void Reserve(const StepRequest& request, CopyPlan* moves);
  void PlanTokens(const StepRequest& request, const PlannedSequence& planned);
  void ValidateKept(const Sequence& sequence, const std::vector<int32_t>& kept,
                    KeptNodes which) const;
  /*! \brief Reserves what a commit needs, so that it cannot fail. \throws Error kOutOfPages if
   * pages are missing. */
  void MakeRoomToCommit(const std::vector<int64_t>& ids,
                        const std::vector<std::vector<int32_t>>& kept, CopyPlan* moves);
  void CommitKept(Sequence* sequence, const std::vector<int32_t>& kept, CopyPlan* moves);

  TableConfig config_;
  SlidingWindow default_window_;
  RefCountedPool pool_;
  std::unordered_map<int64_t, std::unique_ptr<Sequence>> sequences_;
  uint64_t batch_mark_ = 0;  // marks the batch under validation, to detect an id named twice
  Forward forward_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_SEQUENCE_TABLE_H_
