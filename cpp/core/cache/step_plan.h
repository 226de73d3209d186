/*!
 * \file core/cache/step_plan.h
 * \brief One forward step as the kernels see it: which rows, which columns, which pages.
 *
 * A *row* is a new token of the step; the rows of a batch are its new tokens, one sequence after
 * another. A *column* is a token of one sequence in the cache, past and new; column c lies in page
 * pages[c / page_size] at offset c % page_size. A plan is made by BeginForward and does not change
 * until EndForward; its pointers lead into the sequence table, which does not change in between
 * either.
 */
#ifndef KVCTL_CORE_CACHE_STEP_PLAN_H_
#define KVCTL_CORE_CACHE_STEP_PLAN_H_

#include <cstdint>
#include <vector>

namespace kvctl {

/*! \brief The part of a step that concerns one sequence. */
struct SequencePlan {
  int32_t row_begin;  //!< its first row in the batch
  int32_t num_rows;   //!< its new tokens: the last num_rows columns
  /*! \brief Columns [0, num_committed) are the past, in logical order. */
  int32_t num_committed;
  /*! \brief Columns [num_committed, num_committed + num_pending) are pending, the new rows
   * included. */
  int32_t num_pending;
  /*! \brief Page of each run of page_size columns; -1 where a window has let the page go (always
   * hidden). */
  const int32_t* pages;
  /*!
   * \brief Parent of each pending column as an index into the pending region, -1 being the
   * committed context; a parent precedes its children. nullptr: the pending region is a chain.
   */
  const int32_t* parents;
  /*!
   * \brief Depth of each pending column: its logical index is num_committed + depth, so that a
   * token has the same logical index alone, in a chain or on a tree path. nullptr: a chain, depth =
   * index.
   */
  const int32_t* depths;
  /*! \brief Position of each committed column, or nullptr where position = column (nothing was
   * evicted). */
  const int32_t* committed_positions;
  /*! \brief Position of a pending column of depth 0: one past the last committed position. */
  int32_t next_position;

  int32_t num_columns() const { return num_committed + num_pending; }
};

/*! \brief One step of a batch. */
struct StepPlan {
  std::vector<SequencePlan> sequences;
  std::vector<int32_t> slots;      //!< [rows] where each new K/V goes: page * page_size + offset
  std::vector<int32_t> positions;  //!< [rows] rotary position of each new token

  int32_t num_rows() const { return static_cast<int32_t>(slots.size()); }
};

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_STEP_PLAN_H_
