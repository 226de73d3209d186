/*!
 * \file runtime/verify/verify_batch.h
 * \brief The checks that turn the raw arrays of a verify call into the items that core decides.
 */
#ifndef KVCTL_RUNTIME_VERIFY_VERIFY_BATCH_H_
#define KVCTL_RUNTIME_VERIFY_VERIFY_BATCH_H_

#include <cstdint>
#include <vector>

#include "core/tree/token_tree_codec.h"
#include "core/verify/verify.h"

namespace kvctl {

/*! \brief One list of integers, which belongs to the caller. */
struct IntList {
  const int32_t* data = nullptr;
  int64_t size = 0;
};

/*!
 * \brief A verify call as raw arrays. kvctl::VerifyBatch and VerifyRequest both become one.
 *
 * B, N and R are as in kvctl::VerifyBatch. The target and dense draft distributions may lie on any
 * device; all else lies on the host.
 */
struct BatchArrays {
  Rule rule = Rule::kTargetOnly;
  bool gumbel = false;          //!< sample the target by Gumbel noise, whatever the rule
  std::vector<TreeView> trees;  //!< [B]
  std::vector<Drawn> drawn;     //!< [1] or [N]; MakeItems expands it

  const void* target = nullptr;  //!< [R, vocab_size]
  DType target_type = DType::kFloat32;
  int64_t target_stride = 0;
  bool probabilities = false;
  int64_t num_rows = 0;  //!< R
  int64_t vocab_size = 0;

  DraftInput draft;        //!< of the whole batch
  int64_t draft_rows = 0;  //!< R, or N with per_node

  std::vector<Sampling> sampling;  //!< [1] or [B]
  uint64_t seed = 0;
  const int64_t* request_ids = nullptr;     //!< [B], or nullptr: all 0
  const int64_t* root_positions = nullptr;  //!< [B], or nullptr: all 0
  int64_t least_root_position = 0;          //!< -1 for roots that only stand before a first token
  std::vector<IntList> history;             //!< [B] or empty
  const uint32_t* bitmask = nullptr;        //!< [N, ceil(vocab_size / 32)]
  std::vector<uint32_t> fitted_bitmask;     //!< where `bitmask` points if the caller's is narrower
  double epsilon = 0;
  double delta = 0;
};

/*! \brief The trees of plain sampling: B roots whose token is not known, one for each row. */
std::vector<TreeView> LoneRoots(int64_t size);

/*! \brief N, the nodes of all trees. */
int64_t NumNodes(const std::vector<TreeView>& trees);

/*!
 * \brief Checks a call and returns its sequences, without outputs.
 *
 * The items point into the arrays, which must stay as they are.
 *
 * \throws Error kValue, kIndex or kType that names the sequence and what is wrong.
 */
std::vector<VerifyItem> MakeItems(BatchArrays* arrays);

/*!
 * \brief A bitmask as wide as the logits, of one that may be as wide as the tokenizer's vocabulary.
 *
 * The tokens that a narrower one does not reach are forbidden.
 *
 * \param rows [num_rows, width] the caller's, or nullptr, which is returned.
 * \param width its words; 0: as many as the logits need.
 * \param fitted storage for the result where it is not `rows`.
 * \return [num_rows, ceil(vocab_size / 32)]
 * \throws Error kValue for a negative width, or if a word behind the vocabulary of the logits has a
 * bit set.
 */
const uint32_t* FitBitmask(const uint32_t* rows, int64_t num_rows, int64_t width,
                           int64_t vocab_size, std::vector<uint32_t>* fitted);

/*! \brief The outputs of a call; each is [N], a sequence's part begins where its nodes do. */
struct OutputArrays {
  int32_t* nodes = nullptr;
  int32_t* tokens = nullptr;
  int32_t* kept = nullptr;
  double* log_probs = nullptr;  //!< or nullptr
};
void SetOutputs(const OutputArrays& outputs, std::vector<VerifyItem>* items);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_VERIFY_VERIFY_BATCH_H_
