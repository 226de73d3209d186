/*!
 * \file core/recurrent/recurrent_step.h
 * \brief One forward step of a recurrent state: the state that each new token reads and the one
 * that it writes.
 */
#ifndef KVCTL_CORE_RECURRENT_RECURRENT_STEP_H_
#define KVCTL_CORE_RECURRENT_RECURRENT_STEP_H_

#include <cstdint>
#include <vector>

namespace kvctl {

/*! \brief The states that the model has set when a step ends. */
enum class StepOutcome {
  kNothing,  //!< none: the sequences grow and keep their states
  kFinal,    //!< the states after the last token of each sequence
  kSteps,    //!< the states after every token
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
    bool chain;  //!< every row is the child of the one before it
  };
  std::vector<PlannedSequence> sequences;
  std::vector<int32_t> root_state_indices;  //!< [roots] the state of each root
  std::vector<int32_t> row_sources;  //!< [rows] row whose state the row starts from, or -1 - root
  std::vector<int32_t> row_roots;    //!< [rows] root at the start of the row's path
  std::vector<int32_t> row_state_indices;  //!< [rows] the state after each row; -1: it is not kept
  std::vector<int32_t>
      node_parents;  //!< [rows] parent of each row in its sequence's pending region

  int32_t num_rows() const { return static_cast<int32_t>(row_sources.size()); }
  int32_t num_roots() const { return static_cast<int32_t>(root_state_indices.size()); }
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
