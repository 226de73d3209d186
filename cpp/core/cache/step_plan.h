/*!
 * \file core/cache/step_plan.h
 * \brief One forward step as the kernels see it: queries, keys and pages.
 *
 * A *query* is a new token of the step. The queries of a batch are its new tokens, one sequence
 * after another, as in FlashInfer's qo_indptr. A *key* is a token of one sequence in the cache,
 * past or new; key k lies in page pages[k / page_size] at offset k % page_size. BeginForward makes
 * a plan, and it does not change until EndForward. Its pointers lead into the sequence table, which
 * does not change in between either.
 */
#ifndef KVCTL_CORE_CACHE_STEP_PLAN_H_
#define KVCTL_CORE_CACHE_STEP_PLAN_H_

#include <cstdint>
#include <vector>

namespace kvctl {

/*! \brief The part of a step that concerns one sequence. */
struct SequencePlan {
  int32_t query_begin;       //!< its first query in the batch (FlashInfer: qo_indptr[s])
  int32_t num_query_tokens;  //!< its new tokens: the last num_query_tokens keys
  /*! \brief Keys [0, num_committed) are the past, in logical order. */
  int32_t num_committed;
  /*! \brief Keys [num_committed, num_committed + num_pending) are pending, the new tokens
   * included. */
  int32_t num_pending;
  /*! \brief Page of each run of page_size keys; -1 where a window has evicted the page (always
   * hidden). */
  const int32_t* pages;
  /*!
   * \brief Parent of each pending token as an index into the pending region, -1 being the
   * committed context; a parent precedes its children. nullptr: the pending region is a chain.
   */
  const int32_t* parents;
  /*!
   * \brief Depth of each pending token: its logical index is num_committed + depth, so that a
   * token has the same logical index alone, in a chain or on a tree path. nullptr: a chain, depth =
   * index.
   */
  const int32_t* depths;
  /*! \brief Position of each committed token, or nullptr where position = KV index (nothing was
   * evicted). */
  const int32_t* committed_positions;
  /*! \brief Position of a pending token of depth 0: one past the last committed position. */
  int32_t next_position;

  int32_t kv_len() const { return num_committed + num_pending; }
};

/*! \brief One step of a batch. */
struct StepPlan {
  std::vector<SequencePlan> sequences;
  std::vector<int32_t>
      slots;  //!< [num_query_tokens] where each new K/V goes: page * page_size + offset
  std::vector<int32_t> positions;  //!< [num_query_tokens] rotary position of each new token

  int32_t num_query_tokens() const { return static_cast<int32_t>(slots.size()); }
};

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_STEP_PLAN_H_
