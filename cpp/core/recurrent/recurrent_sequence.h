/*!
 * \file core/recurrent/recurrent_sequence.h
 * \brief One sequence of a recurrent state: which states are kept, and where.
 */
#ifndef KVCTL_CORE_RECURRENT_RECURRENT_SEQUENCE_H_
#define KVCTL_CORE_RECURRENT_RECURRENT_SEQUENCE_H_

#include <cstdint>
#include <vector>

namespace kvctl {

/*! \brief A kept state: what the model's layers hold after the first `position` tokens. */
struct Snapshot {
  int64_t position;
  /*! \brief Where the state lies. A state never changes once it is written, so it can be shared. */
  int32_t state_index;
  uint64_t stamp;  //!< when it was made: larger is later, and a state made anew is never the same
};

/*! \brief A pending node of a recurrent state: a drafted token that is not accepted yet. */
struct PendingState {
  int32_t parent;       //!< index into the pending region, or -1 for the committed state
  int32_t state_index;  //!< the state after this node, or -1 where none is kept
};

/*!
 * \brief One sequence of a recurrent state.
 *
 * The history lists kept states, oldest first. The last one is the state at the committed length.
 * If the history has every position, a rollback reaches its target exactly. If it has only the
 * starts of chunks, a rollback stops at the kept state before the target, and the tokens in between
 * have to run again.
 */
struct RecurrentSequence {
  std::vector<Snapshot> history;  //!< positions strictly ascending, never empty
  std::vector<PendingState> pending;

  int64_t length() const { return history.back().position; }
  int32_t num_pending() const { return static_cast<int32_t>(pending.size()); }
  /*! \brief Tokens, pending ones counted. */
  int64_t total() const { return length() + num_pending(); }
  /*! \brief Index of the last kept state at or before a position, or -1 where there is none. */
  int32_t FindAtOrBefore(int64_t position) const {
    int32_t index = static_cast<int32_t>(history.size()) - 1;
    while (index >= 0 && history[index].position > position) --index;
    return index;
  }
  /*! \brief Index of the state after a pending node, or of the committed state for node -1; -1
   * where none is kept. */
  int32_t StateIndexOf(int32_t node) const {
    return node < 0 ? history.back().state_index : pending[node].state_index;
  }
};

}  // namespace kvctl

#endif  // KVCTL_CORE_RECURRENT_RECURRENT_SEQUENCE_H_
