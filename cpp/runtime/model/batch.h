/*!
 * \file runtime/model/batch.h
 * \brief The sequences of one call to a runner: checks, and how their tokens are cut into steps.
 */
#ifndef KVCTL_RUNTIME_MODEL_BATCH_H_
#define KVCTL_RUNTIME_MODEL_BATCH_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvctl/paged_kv_cache.h"
#include "kvctl/recurrent_state.h"
#include "kvctl/step_request.h"

namespace kvctl {

/*! \brief Tokens [begin, end) of one prompt of a batch. */
struct PromptPiece {
  size_t prompt;  //!< index into the batch
  int64_t begin;
  int64_t end;
};

/*!
 * \brief Checks the sequences of a batch.
 * \param count How many `what` were given for them.
 * \throws Error kValue if there are none, if the numbers differ, or if an id occurs twice.
 */
void CheckBatch(const std::vector<int64_t>& seq_ids, size_t count, const char* what);

/*! \brief Cuts prompts of these lengths into steps of at most `chunk` tokens, in order. */
std::vector<std::vector<PromptPiece>> CutIntoSteps(const std::vector<int64_t>& lengths,
                                                   int64_t chunk, bool one_sequence_per_step);

/*! \brief Whether a request's tokens may run in several steps: its later ones see the earlier. */
bool CanCut(const StepRequest& request);

/*! \brief Spreads requests over steps of at most `chunk` tokens, in order; cuts those that may be.
 */
std::vector<std::vector<StepRequest>> CutIntoSteps(const std::vector<StepRequest>& requests,
                                                   int64_t chunk, bool one_sequence_per_step);

/*!
 * \brief Checks, before the first of several steps, that the cache has pages for all of them.
 *
 * Does not count pages that have to be copied because another sequence shares them. A step that
 * lacks such a page throws, and AllOrNothing rolls back the steps before it.
 *
 * \param cache May be null: recurrent states do not grow with their sequences.
 * \param lengths New tokens of each sequence.
 * \throws Error kOutOfPages if too few pages are free.
 */
void CheckFreePages(const PagedKVCache& cache, const std::vector<int64_t>& seq_ids,
                    const std::vector<int64_t>& lengths);

/*!
 * \brief Refuses a sequence with pending nodes: a new tree's parents count from its own root.
 * \param cache, state The model's; either may be null.
 * \throws Error kValue, kKey if there is no such sequence.
 */
void CheckNothingPending(const PagedKVCache& cache, const RecurrentState& state, int64_t seq_id);

/*!
 * \brief Refuses new tokens at positions beyond the model's context window.
 *
 * A sequence with a sliding window has no maximal length.
 * \param cache, state The model's; either may be null.
 * \param context The model's context window in tokens; below 1: it has none.
 * \param length By how many tokens the sequence grows.
 * \throws Error kValue, kKey if there is no such sequence.
 */
void CheckContext(const PagedKVCache& cache, const RecurrentState& state, int64_t context,
                  int64_t seq_id, int64_t length);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_MODEL_BATCH_H_
