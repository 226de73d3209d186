/*!
 * \file core/recurrent/recurrent_table.h
 * \brief The sequences of a recurrent state and the states that they keep.
 */
#ifndef KVCTL_CORE_RECURRENT_RECURRENT_TABLE_H_
#define KVCTL_CORE_RECURRENT_RECURRENT_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

#include "core/recurrent/recurrent_sequence.h"
#include "core/recurrent/recurrent_step.h"
#include "core/support/ref_counted_pool.h"
#include "kvctl/step_request.h"

namespace kvctl {

struct RecurrentConfig {
  int32_t max_states;      //!< states that fit, without the initial one
  int32_t max_sequences;   //!< the most sequences at a time
  int32_t max_history;     //!< tokens by which a sequence can be rolled back
  bool keep_steps = true;  //!< keep the state after every token where the model gives it
};

/*! \brief The point that a rollback reaches. */
struct RollbackTarget {
  int64_t position;     //!< committed length afterwards
  int32_t num_pending;  //!< pending nodes left
  int64_t replay;       //!< kept tokens after `position` that have to run again
};

/*!
 * \brief Sequences, their kept states, and the step in flight.
 *
 * A state is named by its index; the caller holds the memory behind it. The step that takes an
 * index writes its state, and after that the state is only shared: forks, rollbacks and commits
 * move no data. Index 0 is the initial state. Every operation either happens or throws and leaves
 * the table as it was.
 *
 * If a step needs more states than are free, the oldest kept states are dropped, but never the
 * present state of a sequence, a pending one or one of a checkpoint.
 */
class RecurrentTable {
 public:
  explicit RecurrentTable(const RecurrentConfig& config);

  // Queries.
  const RecurrentConfig& config() const { return config_; }
  const RefCountedPool& pool() const { return pool_; }
  size_t num_sequences() const { return sequences_.size(); }
  bool Contains(int64_t id) const { return sequences_.count(id) > 0; }
  /*! \throws Error kKey if there is no such sequence. */
  const RecurrentSequence& Get(int64_t id) const;
  /*! \brief The earliest committed length that the sequence can be rolled back to. */
  int64_t EarliestPosition(int64_t id) const;
  /*! \brief For tests: the references to each state, counted from the sequences and checkpoints. */
  std::vector<int32_t> CountReferences() const;

  // Sequences.
  void Clear();
  void Add(int64_t id);
  void Remove(int64_t id);
  /*!
   * \brief Makes `child` what `parent` was after its first `position` tokens, pending ones counted
   * (-1: all).
   * \return tokens of the parent that the child has to run again to get to `position`.
   */
  int64_t Fork(int64_t parent, int64_t child, int64_t position);
  /*! \brief The point that PopN would reach; throws what PopN would. */
  RollbackTarget PlanPopN(int64_t id, int64_t n) const;
  /*! \brief Takes back the last n tokens: pending nodes, the latest first, and then committed ones.
   */
  int64_t PopN(int64_t id, int64_t n);
  /*! \brief Takes back every token, however far the kept states reach; checkpoints stay valid. */
  void Restart(int64_t id);

  // The step in flight.
  bool in_forward() const { return active_; }
  const RecurrentStep& step() const { return step_; }
  /*!
   * \brief Reserves memory for every state that the step may keep, and plans the step.
   * \param requests Their positions and masks are not read: the caller replaces a tree mask by its
   * `parents`.
   */
  void BeginForward(const std::vector<StepRequest>& requests);
  void EndForward(StepOutcome outcome);
  /*! \brief Takes the step in flight back. */
  void AbortForward();

  // Pending nodes.
  /*! \brief How many of the kept tokens each Commit would leave to run again; throws where Commit
   * would. */
  std::vector<int32_t> PlanCommit(const std::vector<int64_t>& ids,
                                  const std::vector<std::vector<int32_t>>& kept) const;
  /*!
   * \brief Commits, for each named sequence, a path of its pending region and drops the other
   * nodes.
   * \param ids [n] the sequences, each at most once, in any order.
   * \param kept [n] nodes from the committed state downwards, each the child of the one before it.
   * \return for each sequence the number of kept tokens that have to run again, its last ones.
   */
  std::vector<int32_t> Commit(const std::vector<int64_t>& ids,
                              const std::vector<std::vector<int32_t>>& kept);
  /*! \brief Drops the pending nodes of several sequences. */
  void DropPending(const std::vector<int64_t>& ids);

  // Checkpoints. They hold their state, so that any later rollback finds it, whatever the history's
  // bound.
  int64_t MakeCheckpoint(int64_t id);
  /*! \throws Error kValue if the checkpoint is not one of this sequence's. */
  void CheckCheckpoint(int64_t id, int64_t checkpoint) const;
  /*! \brief Makes the sequence what it was when the checkpoint was made; the checkpoint stays
   * valid. */
  void Rollback(int64_t id, int64_t checkpoint);
  /*! \brief Forgets a checkpoint; one that went with its sequence is no error. */
  void ReleaseCheckpoint(int64_t checkpoint);

 private:
  struct Checkpoint {
    int64_t sequence_id;
    Snapshot present;
    std::vector<PendingState> pending;
    uint64_t made_at;  // stamps before this one existed already
  };

  RecurrentSequence& Find(int64_t id);
  void RequireNoForward(const char* operation) const;
  void CheckNewId(int64_t id) const;
  RollbackTarget PlanRollback(int64_t id, int64_t target, const char* operation) const;

  void Hold(int32_t state_index) {
    if (state_index >= 0) pool_.Retain(state_index);
  }
  void Drop(int32_t state_index) {
    if (state_index >= 0) pool_.Release(state_index);
  }
  void TruncateHistory(RecurrentSequence* sequence, size_t count);
  void TruncatePending(RecurrentSequence* sequence, int32_t count);
  /*! \brief Frees states that no rollback within the bound needs. */
  void TrimHistory(RecurrentSequence* sequence);
  /*! \brief The kept nodes' states become history, the other pending ones go. */
  void CommitPath(RecurrentSequence* sequence, const std::vector<int32_t>& kept);

  void ValidateRequest(const StepRequest& request, const RecurrentSequence& sequence) const;
  void PlanRows(const StepRequest& request, const RecurrentSequence& sequence,
                RecurrentStep* step) const;
  /*!
   * \brief Frees `count` states by dropping the oldest history.
   * \throws Error kOutOfPages before it drops any, if it cannot free that many.
   */
  void MakeRoom(int32_t count);
  void FinishSequence(const RecurrentStep::PlannedSequence& planned, StepOutcome outcome);

  RecurrentConfig config_;
  RefCountedPool pool_;
  std::unordered_map<int64_t, RecurrentSequence> sequences_;
  std::map<int64_t, Checkpoint> checkpoints_;
  int64_t next_checkpoint_ = 1;
  uint64_t next_stamp_ = 1;
  bool active_ = false;
  RecurrentStep step_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_RECURRENT_RECURRENT_TABLE_H_
