/*!
 * \file core/verify/verify.h
 * \brief Decides a batch of sequences by one acceptance rule.
 */
#ifndef KVCTL_CORE_VERIFY_VERIFY_H_
#define KVCTL_CORE_VERIFY_VERIFY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "core/verify/rules.h"
#include "core/verify/share_items.h"

namespace kvctl {

/*! \brief One sequence of a batch: its tree, its random numbers, its outputs. */
struct VerifyItem {
  SequenceInput input;
  RandomStream stream;
  uint32_t root_position;
  Noise noise;  //!< for rules that sample from the target

  int32_t* nodes;      //!< out [input.size] accepted nodes in path order, without the root
  int32_t* kept;       //!< out [input.size] rows of the root and of the accepted nodes, or nullptr
  int32_t* tokens;     //!< out [input.size] emitted tokens
  double* log_probs;   //!< out [input.size] of the emitted tokens, or nullptr
  int32_t num_nodes;   //!< out
  int32_t num_tokens;  //!< out
  int32_t bonus;       //!< out: the last emitted token, or -1 if the sequence is finished
  std::string* error = nullptr;  //!< out: why it could not be decided, else empty; nullptr: thrown
  bool finished;  //!< out: a stop token was emitted, and the tokens after it were dropped
};

/*! \brief Writes a rule's decision to the outputs of an item, except log_probs. The path and the
 * tokens end at the first stop token. */
void WriteOutcome(const Outcome& outcome, VerifyItem* item);

/*!
 * \brief Runs a rule on every sequence of a batch.
 *
 * The result of a sequence depends on that sequence alone. It does not depend on its place in the
 * batch or on threads.
 *
 * \param share_items runs the sequences, perhaps in several threads.
 * \throws Error of the first sequence in the batch that has one, with its index. The outputs are
 * then undefined.
 */
void VerifyItems(Rule rule, int32_t vocab_size, const ShareItems& share_items,
                 std::vector<VerifyItem>* items);

}  // namespace kvctl

#endif  // KVCTL_CORE_VERIFY_VERIFY_H_
