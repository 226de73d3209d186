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
#include "core/cache/copy_plan.h"
#include "core/cache/sequence.h"
#include "core/cache/sequence_pages.h"
#include "core/cache/step_plan.h"
#include "kvctl/step_request.h"

namespace kvctl {

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
  const RefCountedPool& pool() const { return pages_.pool(); }
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
  /*! \brief A sequence of the step by its index in the plan. */
  const Sequence& step_sequence(size_t index) const { return *forward_.sequences[index].sequence; }
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
   * \param first_missing The first layer that lacks their K and V, or -1; if there is one, they
   * must all stay pending, and cannot be committed before a step that resumes them.
   */
  void EndForward(int32_t first_missing = -1);
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
    bool resumes = false;    // no new tokens: the pending nodes run other layers
  };
  struct Forward {
    bool active = false;
    std::vector<PlannedSequence> sequences;
    StepPlan plan;
  };

  /*! \brief Refuses to write into pending slots that another sequence or a checkpoint holds. */
  void CheckOwnPages(const Sequence& sequence);
  /*! \brief Plans a sequence whose pending nodes run other layers. */
  void PlanResumed(Sequence* sequence, int32_t query_begin);
  Sequence& Find(int64_t id);
  void CheckNewId(int64_t id) const;
  /*! \brief Begins a batch: NameInBatch then adds the sequences that it names to batch_. */
  void BeginBatch();
  /*! \brief Finds a sequence and adds it to batch_. A batch may name each once. */
  Sequence& NameInBatch(int64_t id);
  /*! \throws Error kOutOfPages if the pool has fewer free pages than the step needs. */
  void CheckPagesForStep(const std::vector<StepRequest>& requests);
  /*! \param query_begin The first of the sequence's rows in the plan. */
  void Reserve(const StepRequest& request, Sequence* sequence, int32_t query_begin,
               CopyPlan* moves);
  void PlanTokens(const StepRequest& request, const PlannedSequence& planned);
  void ValidateKept(const Sequence& sequence, const std::vector<int32_t>& kept,
                    KeptNodes which) const;
  /*! \brief Reserves what a commit of the batch needs, so that it cannot fail. \throws Error
   * kOutOfPages if pages are missing. */
  void MakeRoomToCommit(const std::vector<std::vector<int32_t>>& kept, CopyPlan* moves);
  void CommitKept(Sequence* sequence, const std::vector<int32_t>& kept, CopyPlan* moves);

  TableConfig config_;
  SlidingWindow default_window_;
  SequencePages pages_;
  std::unordered_map<int64_t, std::unique_ptr<Sequence>> sequences_;
  uint64_t batch_mark_ = 0;       // marks the batch under validation, to detect an id named twice
  std::vector<Sequence*> batch_;  // the sequences that it names, in order
  Forward forward_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_SEQUENCE_TABLE_H_
