/*!
 * \file kernels/cuda/verify/verify_plan.h
 * \brief A verify call as CUDA kernels read it, and its results.
 *
 * Trees and parameters are uploaded as one arena. The logits and draft distributions are on the
 * device already.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_VERIFY_PLAN_H_
#define KVCTL_KERNELS_CUDA_VERIFY_VERIFY_PLAN_H_

#include <cstdint>
#include <vector>

#include "core/verify/verify.h"
#include "kernels/cuda/verify/row_plan.h"
#include "kvctl/dtype.h"

namespace kvctl::cuda {

/*! \brief How a rule walks a tree: the distinction that kernels make between rules. */
enum class Walk : int32_t { kFollowTarget, kTokenWise, kBlock, kRecursive, kTraversal };

/*! \brief The start of the arena; parts as byte offsets from the header. */
struct VerifyHeader {
  int32_t num_sequences;
  int32_t sequences;  //!< [num_sequences] VerifySequence
  int32_t nodes;      //!< VerifyNode
  RowHeader rows;
};

/*! \brief SequenceInput and the keys of its random numbers. */
struct VerifySequence {
  const void* target;  //!< [rows, vocab] of logits; nullptr: of nodes, in scratch memory
  const void* draft;   //!< [rows, vocab] of distributions, or nullptr
  uint64_t seed, request;
  uint32_t root_position;
  float scale;     //!< log2(e) / temperature; of temperature 1 where greedy
  int32_t greedy;  //!< temperature 0
  int32_t gumbel;  //!< target-only walks sample by Gumbel noise
  DType target_type;
  int32_t draft_f64, draft_per_node;
  int32_t first_node, num_nodes;
  int32_t target_rows;  //!< job of row 0
  int32_t scratch_row;  //!< of node 0
  int32_t cuts;         //!< whether top-k, top-p or min-p remove tokens
};

struct VerifyNode {
  int32_t token, parent, row, drawn;  //!< drawn: Drawn
  int32_t first_child, next_sibling;  //!< -1: none
  int32_t depth;
  int32_t first_step;  //!< of the steps that its children leave
  int32_t draft_job;   //!< of the row it was drawn from; -1: none is read
  int32_t sequence;
};

/*! \brief A target row and the sums of its blocks. */
struct TargetRow {
  const void* logits;
  const BlockSum* sums;
  uint64_t total;
  double factor;  //!< kProbScale / total
  int32_t exponent;
  int32_t greedy;  //!< the token, or -1 where the row is sampled
};

/*! \brief A token and its score: of Gumbel noise, the least wins. */
struct TokenScore {
  double score;
  int32_t token, unused;
};

/*! \brief What a walk asks of a node that does not depend on the walk: all of it is read at once,
 * before the walk. */
struct NodeFacts {
  TargetRow target;  //!< after the node
  /*! \brief Of its token after its parent: RowSampler::Prob and LogProb. */
  double prob, log_prob;
  /*! \brief DraftDistribution's weight of its token, and total; 1 of a deterministic node. */
  double draft_weight, draft_total;
  double row_weight;  //!< of its token in the row it was drawn from
  int32_t target_irregular, draft_irregular;
};

/*! \brief One subtraction of a child's distribution from its parent's residual. */
struct DistributionStep {
  double a, r_total;
  double r_factor, d_factor;  //!< factors of the weights of either distribution
  const void* row;            //!< that the child was drawn from; nullptr: one-hot
  int32_t child;
  /*! \brief Its tokens of earlier siblings have no weight. */
  int32_t excludes;
};

/*! \brief A node whose children a walk examines. */
struct LevelState {
  int32_t node, child;
  double a;
  int32_t num_steps, unused;
  double total;  //!< of the residual
};

/*! \brief The result of a sequence. */
struct VerifyOutcome {
  int32_t node, bonus;
  /*! \brief Not 0: input that the kernels leave to the CPU (a row without tokens, infinite logits,
   * an invalid distribution). The call must be repeated there. */
  int32_t irregular;
  int32_t unused;
};

/*! \brief Lays out calls. Storage is reused. */
class VerifyPlanBuilder {
 public:
  /*!
   * \brief Lays out a call.
   *
   * The targets and draft distributions of the items are device pointers.
   *
   * \return false for a call that the kernels do not support: other rules, probabilities instead
   * of logits, sparse draft distributions.
   * \throws Whatever CheckRule throws.
   */
  bool Build(Rule rule, int32_t vocab_size, const std::vector<VerifyItem>& items);

  const std::vector<uint64_t>& arena() const { return arena_; }
  Walk walk() const { return walk_; }
  int32_t num_jobs() const { return num_jobs_; }
  /*! \brief Whether tokens are drawn by Gumbel noise, and params.scores are needed. */
  bool noise() const { return noise_; }
  int32_t num_processed() const { return num_processed_; }
  bool cuts() const { return cuts_; }
  int32_t num_nodes() const { return num_nodes_; }

 private:
  std::vector<uint64_t> arena_;
  Walk walk_ = Walk::kFollowTarget;
  int32_t num_jobs_ = 0, num_nodes_ = 0, num_processed_ = 0;
  bool cuts_ = false, noise_ = false;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_VERIFY_PLAN_H_
