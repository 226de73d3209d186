/*!
 * \file core/recurrent/recurrent_step.h
 * \brief One forward step of a recurrent state: which state each new token starts from, where its
 * own goes.
 */
#ifndef KVCTL_CORE_RECURRENT_RECURRENT_STEP_H_
#define KVCTL_CORE_RECURRENT_RECURRENT_STEP_H_

#include <cstdint>
#include <vector>

namespace kvctl {

/*! \brief What a forward has set when it ends. */
enum class StepOutcome {
  kNothing,  //!< no state: the sequences grow, their states stay
  kFinal,    //!< every state after the last token of each sequence, not of every token
  kSteps,    //!< every state after every token
};

/*!
 * \brief The step in flight. A *row* is a new token; a *root* is a state of before the step that
 * rows start from (usually one per sequence, more where a tree grows from several pending nodes).
 */
struct RecurrentStep {
  /*! \brief The rows of one sequence. */
  struct PlannedSequence {
    int64_t sequence_id;
    int32_t row_begin;
    int32_t num_rows;
    bool pending;
    bool chain;  //!< every row follows the one before it: there is one state after the last
  };
  std::vector<PlannedSequence> sequences;
  std::vector<int32_t> root_slots;   //!< [roots] where each root's state lies
  std::vector<int32_t> row_sources;  //!< [rows] row whose state the row starts from, or -1 - root
  std::vector<int32_t> row_roots;    //!< [rows] root at the start of the row's path
  std::vector<int32_t>
      row_slots;  //!< [rows] where the state after the row goes; -1: it is not kept
  std::vector<int32_t>
      node_parents;  //!< [rows] parent of each row in its sequence's pending region

  int32_t num_rows() const { return static_cast<int32_t>(row_sources.size()); }
  int32_t num_roots() const { return static_cast<int32_t>(root_slots.size()); }
  /*! \brief Whether each sequence's rows are one chain, so that it has one state before and one
   * after. */
  bool all_chains() const {
    for (const PlannedSequence& sequence : sequences) {
      if (!sequence.chain) return false;
    }
    return true;
  }
};

}  // namespace kvctl

#endif  // KVCTL_CORE_RECURRENT_RECURRENT_STEP_H_
