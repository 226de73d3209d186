/*!
 * \file kernels/verify.h
 * \brief Acceptance rules over a batch, and drawing of drafts: threaded over sequences and
 * vocabulary.
 */
#ifndef KVCTL_KERNELS_VERIFY_H_
#define KVCTL_KERNELS_VERIFY_H_

#include <cstdint>
#include <vector>

#include "core/verify/rules.h"

namespace kvctl {

/*! \brief One sequence's part of a call besides its tree: random numbers, stop tokens, outputs. */
struct VerifyItem {
  SequenceInput input;
  RandomStream stream;
  uint32_t root_position;
  Noise noise;  //!< of rules that follow the target
  const int32_t* stop_tokens;
  int32_t num_stop_tokens;

  int32_t* nodes;      //!< out [input.size] accepted nodes in path order, the root not included
  int32_t* tokens;     //!< out [input.size] emitted tokens
  double* log_probs;   //!< out [input.size] of the emitted tokens, or nullptr
  int32_t num_nodes;   //!< out
  int32_t num_tokens;  //!< out
  int32_t bonus;       //!< out: the token to go on from, -1 where finished
  bool finished;       //!< out: a stop token was emitted; what came after it is dropped
};

/*! \brief Writes what a rule decided into an item's outputs, all but log_probs: the path and the
 * tokens, cut after the first stop token. */
void WriteOutcome(const Outcome& outcome, VerifyItem* item);

/*!
 * \brief Runs a rule on every sequence of a batch.
 *
 * A sequence's result depends on that sequence alone: not on its place in the batch, nor on
 * threads.
 *
 * \throws Error of the first sequence in the batch that has one, naming it; outputs are then
 * undefined.
 */
void VerifyCpu(Rule rule, int32_t vocab_size, std::vector<VerifyItem>* items);

/*! \brief One row to draw from. */
struct DraftItem {
  RowInput row;
  const Sampling* sampling;
  RandomStream stream;
  uint32_t root_position;
  uint32_t first_node;  //!< the node that the first token drawn will be in its tree
  uint32_t depth;       //!< of the tokens drawn, for `coupled`

  int32_t* tokens;  //!< out [n], -1 behind the end of the support
  void* probs;      //!< out [vocab] the distribution drawn from, or nullptr
};

/*!
 * \brief Draws n tokens from each row.
 * \param probs_type kFloat32 or kFloat64. Tokens are drawn from the distribution as it is written,
 * rounded.
 * \throws Error kValue of the first row that has no distribution, naming it.
 */
void DraftCpu(Drawn how, int32_t n, RowType probs_type, int32_t vocab_size,
              std::vector<DraftItem>* items);

/*! \brief The loops of the widest instruction set of this machine. */
const VocabOps& CpuVocabOps();

}  // namespace kvctl

#endif  // KVCTL_KERNELS_VERIFY_H_
