/*!
 * \file runtime/generate/decider.h
 * \brief Which tokens follow the roots of a round: one call of kvctl::Verify, or a few.
 */
#ifndef KVCTL_RUNTIME_GENERATE_DECIDER_H_
#define KVCTL_RUNTIME_GENERATE_DECIDER_H_

#include <tvm/runtime/tensor.h>

#include <cstddef>
#include <optional>
#include <vector>

#include "runtime/generate/text_state.h"

namespace kvctl {

/*! \brief What one text has of a round: its draft, and what is verified of it. */
struct Share {
  TextState* text;
  Draft proposed;
  bool dropped = false;  //!< verify the root alone: a plain step

  bool drafts() const { return !dropped && proposed.tree.size() > 1; }
  TokenTree tree() const {
    return dropped ? TokenTree::Chain({proposed.tree.tokens()[0]}) : proposed.tree;
  }
  int64_t num_rows() const { return dropped ? 1 : proposed.tree.num_rows(); }
};

/*! \brief Verifies the drafts of texts by one rule. */
class Decider {
 public:
  /*! \param rule nullopt: greedy at temperature 0, else target_only. */
  Decider(std::optional<Rule> rule, bool log_probs) : rule_(rule), log_probs_(log_probs) {}

  /*!
   * \brief The decision for each text.
   * \param logits (rows, vocabulary) float32 on any device, a row for each row of the trees, one
   * tree after another.
   * \throws Error As Verify.
   */
  std::vector<VerifiedSequence> Decide(const std::vector<Share>& shares,
                                       const tvm::runtime::Tensor& logits) const;

 private:
  Rule RuleFor(const Share* begin, const Share* end) const;
  bool ReadsProbs() const;
  std::vector<VerifiedSequence> DecideRun(const Share* begin, const Share* end, const float* logits,
                                          int64_t vocab_size) const;

  std::optional<Rule> rule_;
  bool log_probs_;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_GENERATE_DECIDER_H_
