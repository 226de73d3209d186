/*!
 * \file kernels/cuda/verify/walk/node_facts.cuh
 * \brief What a walk asks of a sequence's nodes, read for all of them at once: a walk that asked
 * node after node would wait for memory at each.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_WALK_NODE_FACTS_CUH_
#define KVCTL_KERNELS_CUDA_VERIFY_WALK_NODE_FACTS_CUH_

#include "kernels/cuda/verify/verify_target.cuh"

namespace kvctl::cuda {

/*! \brief Drawn, as core/verify/tree_verifier.h numbers it. */
constexpr int32_t kDrawnDeterministic = 0, kDrawnWithoutReplacement = 2;

/*! \brief A sequence with the facts of its nodes. */
class SequenceNodes : public SequenceTarget {
 public:
  /*! \brief Facts of at most this many nodes are held in shared memory. */
  static constexpr int32_t kMostShared = 64;

  /*! \param shared_facts [kMostShared] in shared memory */
  __device__ SequenceNodes(const VerifyParams& params, const VerifySequence& sequence,
                           WalkShared* shared, NodeFacts* shared_facts)
      : SequenceTarget(params, sequence, shared),
        facts_(sequence.num_nodes <= kMostShared ? shared_facts
                                                 : params.facts + sequence.first_node) {}

  /*! \brief Fills the facts. Sums of rows take a warp for each node, the rest a thread. */
  __device__ KVCTL_NOINLINE void ReadNodes() {
    const int32_t nodes = sequence_.num_nodes, threads = blockDim.x;
    for (int32_t v = threadIdx.x / 32; v < nodes; v += threads / 32) {
      bool irregular;
      const TargetRow target = ReadTarget(v, &irregular);
      const double total = SumOfDraftRow(v);
      if (threadIdx.x % 32 != 0) continue;
      facts_[v].target = target;
      facts_[v].target_irregular = irregular;
      facts_[v].draft_total = total;
    }
    __syncthreads();
    for (int32_t c = 1 + threadIdx.x; c < nodes; c += threads) {
      const TargetRow& target = facts_[nodes_[c].parent].target;
      const int32_t token = nodes_[c].token;
      facts_[c].row_weight = sequence_.draft == nullptr ? 0 : DraftWeight(DraftRow(c), token);
      facts_[c].prob = Prob(target, token);
      if (params_.log_probs != nullptr) facts_[c].log_prob = LogProb(target, token);
    }
    __syncthreads();
    for (int32_t c = 1 + threadIdx.x; c < nodes; c += threads) ReadDraft(c);
    __syncthreads();
  }

  __device__ const NodeFacts& facts(int32_t v) const { return facts_[v]; }

  /*! \brief The target's row after a node. */
  __device__ const TargetRow& Target(int32_t v) {
    irregular_ |= facts_[v].target_irregular != 0;
    return facts_[v].target;
  }

 protected:
  __device__ int32_t DraftRow(int32_t child) const {
    return sequence_.draft_per_node != 0 ? child : nodes_[nodes_[child].parent].row;
  }
  /*! \brief The grid weight of a token in a row of the draft distributions. */
  __device__ double DraftWeight(int32_t row, int32_t x) const {
    const int64_t at = static_cast<int64_t>(row) * params_.vocab_size + x;
    return ToGrid(sequence_.draft_f64 != 0 ? static_cast<const double*>(sequence_.draft)[at]
                                           : static_cast<const float*>(sequence_.draft)[at]);
  }
  __device__ bool Excludes(int32_t child) const {
    return nodes_[child].drawn == kDrawnWithoutReplacement && sequence_.draft_per_node == 0;
  }
  /*! \brief Whether an earlier sibling of a child holds a token. */
  __device__ bool Excluded(int32_t child, int32_t token) const {
    for (int32_t s = nodes_[nodes_[child].parent].first_child; s != child;
         s = nodes_[s].next_sibling) {
      if (nodes_[s].token == token) return true;
    }
    return false;
  }

 private:
  __device__ double SumOfDraftRow(int32_t v) const {
    const int32_t job = nodes_[v].draft_job;
    if (job < 0) return 1;
    const BlockSum* sums = params_.sums + static_cast<int64_t>(job) * num_blocks_;
    double total = 0;
    for (auto b = static_cast<int32_t>(threadIdx.x % 32); b < num_blocks_; b += 32) {
      total += sums[b].distribution_sum;
    }
    return WarpSum(total);
  }

  /*! \brief TreeVerifier::Draft: the distribution a node was drawn from. */
  __device__ void ReadDraft(int32_t c) {
    const VerifyNode& node = nodes_[c];
    NodeFacts& facts = facts_[c];
    facts.draft_irregular = 0;
    facts.draft_weight = 1;
    if (node.draft_job < 0) return;
    facts.draft_weight = facts.row_weight;
    bool irregular = !(fabs(facts.draft_total / kProbScale - 1) <= 1e-3);
    if (Excludes(c) && IsLinked(c)) {
      for (int32_t s = nodes_[node.parent].first_child; s != c; s = nodes_[s].next_sibling) {
        if (Excluded(s, nodes_[s].token)) continue;  // removed by an earlier sibling
        facts.draft_total -= facts_[s].row_weight;
      }
      if (Excluded(c, node.token)) irregular = true;
    }
    facts.draft_irregular = irregular || !(facts.draft_weight > 0);
  }
  /*! \brief Whether a child is among those of its parent: what follows a stop token is not. */
  __device__ bool IsLinked(int32_t child) const {
    return nodes_[nodes_[child].parent].first_child >= 0;
  }

  NodeFacts* facts_;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_WALK_NODE_FACTS_CUH_
