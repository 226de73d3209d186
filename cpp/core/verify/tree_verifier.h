/*!
 * \file core/verify/tree_verifier.h
 * \brief A drafted tree as an acceptance rule sees it, with distributions that are computed on
 * demand.
 */
#ifndef KVCTL_CORE_VERIFY_TREE_VERIFIER_H_
#define KVCTL_CORE_VERIFY_TREE_VERIFIER_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/sampling/draft_row.h"
#include "core/sampling/sampling.h"
#include "core/verify/residual.h"
#include "kvctl/verify.h"

namespace kvctl {

/*! \brief One sequence of a verify call. All arrays belong to the caller. */
struct SequenceInput {
  int32_t size = 0;  //!< nodes, the root included
  const int32_t* tokens = nullptr;
  const int32_t* parents = nullptr;
  const int32_t* rows = nullptr;  //!< [size] row of each node in `target`
  const Drawn* drawn = nullptr;   //!< [size], the root's is not read
  const void* target = nullptr;   //!< [rows, vocab] logits or probabilities
  int64_t target_stride = 0;      //!< elements from one row to the next; 0: vocab
  DType target_type = DType::kFloat32;
  bool probabilities = false;
  const uint32_t* bitmask = nullptr;  //!< [size, ceil(vocab / 32)] one row per node
  DraftInput draft;
  const Sampling* sampling = nullptr;
  const int32_t* history = nullptr;  //!< tokens before the root, for penalties
  int64_t history_size = 0;
  double epsilon = 0;  //!< typical acceptance: threshold of a probability
  double delta = 0;    //!< typical acceptance: threshold relative to exp(-entropy)

  bool IsStop(int32_t token) const {
    const std::vector<int32_t>& stops = sampling->stop_tokens;
    return std::find(stops.begin(), stops.end(), token) != stops.end();
  }
};

/*! \brief A rule's decision: the last accepted node (0: no draft) and the token after it, or -1 if
 * that node holds a stop token. */
struct Outcome {
  int32_t node;
  int32_t bonus;
};

/*! \brief The distributions after the node that a rule visited last at one depth. */
struct DepthState {
  explicit DepthState(const VocabContext& vocab) : target(vocab), residual(vocab) {}

  int32_t node = -1;  //!< the node whose row the target holds
  RowSampler target;  //!< the target's distribution
  Residual residual;  //!< the residual of the target's distribution
  int64_t draft_row = -1;
  DraftRow draft;  //!< the distribution that the child visited last was drawn from
};

/*! \brief The state of one sequence while a rule runs. Start reuses it for the next sequence. */
class TreeVerifier {
 public:
  explicit TreeVerifier(const VocabContext& vocab) : vocab_(vocab) {}

  void Start(const SequenceInput& input);

  const SequenceInput& input() const { return *input_; }
  const VocabContext& vocab() const { return vocab_; }
  int32_t token(int32_t node) const { return input_->tokens[node]; }
  int32_t depth(int32_t node) const { return depths_[node]; }
  /*! \brief -1: a leaf, or a drafted stop token, whatever was drafted below it. */
  int32_t first_child(int32_t node) const { return first_child_[node]; }
  int32_t next_sibling(int32_t node) const { return next_sibling_[node]; }  //!< -1: the last
  /*!
   * \brief Whether the text ends with a drafted node: a stop token.
   *
   * What follows it is dropped. So its row is never read, nor are the nodes below it reached.
   */
  bool ends_at(int32_t node) const { return node > 0 && input_->IsStop(token(node)); }
  /*! \brief The nodes from below the root to a node. */
  std::vector<int32_t> Path(int32_t node) const;

  DepthState& state_at(int32_t depth);
  /*!
   * \brief The target's row after a node; valid until a call for another node of its depth.
   * \throws Error as RowSampler::Load
   */
  RowSampler& Target(int32_t node);
  /*! \brief The residual of the target's distribution after a node; the rule starts it. */
  Residual& ResidualAt(int32_t node) { return state_at(depth(node)).residual; }
  /*!
   * \brief The distribution that a node was drawn from.
   * \throws Error kValue if the node's token has no probability under it.
   */
  DraftDistribution Draft(int32_t node);

 private:
  void FillCounts(int32_t node);

  const VocabContext& vocab_;
  const SequenceInput* input_ = nullptr;
  std::vector<int32_t> first_child_, next_sibling_, depths_;
  std::vector<std::unique_ptr<DepthState>> depth_states_;
  std::vector<std::pair<int32_t, int32_t>> counts_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_VERIFY_TREE_VERIFIER_H_
