// The rules of core/verify/rules, run by all threads of a block in lockstep. Each has the logic of
// its counterpart there.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/verify/walk/verify_distribution.cuh"

namespace kvctl::cuda {
namespace {

struct Decision {
  int32_t node, bonus;
};

/*! \brief core/verify/rules/block.h */
__device__ double AcceptRatio(double s, double a) {
  const double denominator = s + (1.0 - a);
  if (!(denominator > 0)) return 1.0;
  const double ratio = s / denominator;
  return ratio < a ? ratio : a;
}

__device__ double AtMostOne(double p) { return p < 1.0 ? p : 1.0; }

/*! \brief A node from whose distribution nothing is subtracted yet. */
__device__ LevelState StartAt(int32_t node, int32_t child, double a) {
  return {node, child, a, 0, 0, kProbScale};
}

/*! \brief core/verify/rules/target_only.h */
__device__ KVCTL_NOINLINE Decision FollowTarget(SequenceDistributions* distributions) {
  for (int32_t v = 0;;) {
    const int32_t y = distributions->Sample(v);
    int32_t child = distributions->node(v).first_child;
    while (child >= 0 && distributions->node(child).token != y)
      child = distributions->node(child).next_sibling;
    if (child < 0 || distributions->irregular()) return {v, y};
    v = child;
  }
}

/*! \brief core/verify/rules/token_wise.h and, with siblings, core/verify/rules/recursive.h */
__device__ KVCTL_NOINLINE Decision Recursive(SequenceDistributions* distributions) {
  for (int32_t v = 0;;) {
    const TargetRow& target = distributions->Target(v);
    const int32_t first = distributions->node(v).first_child;
    if (distributions->irregular()) return {v, 0};
    if (first < 0) return {v, distributions->SampleToken(target, distributions->ResidualBits(v))};
    LevelState level = StartAt(v, first, 1.0);
    int32_t child = first;
    for (; child >= 0; child = distributions->node(child).next_sibling) {
      const ChildDistribution d = distributions->Draft(child);
      if (distributions->irregular()) return {v, 0};
      const double p = child == first ? distributions->facts(child).prob
                                      : distributions->ResidualProb(level, target, d.token);
      if (distributions->Accept(AtMostOne(p / d.prob()), child)) break;
      distributions->Subtract(1.0, d, child, &level, target);
    }
    if (child < 0)
      return {v, distributions->SampleResidual(level, target, distributions->ResidualBits(v))};
    v = child;
  }
}

/*! \brief core/verify/rules/block.h. levels[i]: the i-th node of the chain, and a_i. */
__device__ KVCTL_NOINLINE Decision Block(SequenceDistributions* distributions, LevelState* levels) {
  int32_t length = 0;
  for (int32_t v = distributions->node(0).first_child; v >= 0;
       v = distributions->node(v).first_child)
    ++length;
  int32_t last = 0, v = 0;
  double a = 1.0;
  for (;; ++last) {
    if (threadIdx.x == 0) {
      levels[last].node = v;
      levels[last].a = a;
    }
    const int32_t child = distributions->node(v).first_child;
    if (child < 0) break;
    const ChildDistribution d = distributions->Draft(child);
    distributions->Target(v);
    if (distributions->irregular()) return {v, 0};
    const double p = distributions->facts(child).prob;
    a = AtMostOne(a * (p / d.prob()));
    if (!(a > 0)) break;
    v = child;
  }
  __syncthreads();
  if (last == length && distributions->Accept(a, v)) {
    const TargetRow& target = distributions->Target(v);
    return {v, distributions->SampleToken(target, distributions->ResidualBits(v))};
  }
  for (int32_t i = last < length ? last : length - 1;; --i) {
    const int32_t at = levels[i].node, child = distributions->node(at).first_child;
    const double reach = levels[i].a;
    if (i > 0 && !distributions->Accept(reach, at)) continue;
    const TargetRow& target = distributions->Target(at);
    LevelState level = StartAt(at, child, reach);
    const double s =
        distributions->Subtract(reach, distributions->Draft(child), child, &level, target);
    if (distributions->irregular()) return {at, 0};
    if (i == 0 || distributions->Accept(AcceptRatio(s, reach), at)) {
      return {at, distributions->SampleResidual(level, target, distributions->ResidualBits(at))};
    }
  }
}

/*! \brief core/verify/rules/traversal.h, with the levels of its recursion in memory. */
__device__ KVCTL_NOINLINE Decision Traversal(SequenceDistributions* distributions,
                                             LevelState* levels) {
  int32_t depth = 0;
  LevelState level = StartAt(0, distributions->node(0).first_child, 1.0);
  for (;;) {
    const int32_t v = level.node;
    const TargetRow& target = distributions->Target(v);
    if (distributions->irregular()) return {v, 0};
    const int32_t first = distributions->node(v).first_child;
    if (level.child >= 0) {
      const ChildDistribution d = distributions->Draft(level.child);
      if (distributions->irregular()) return {v, 0};
      const double p = level.child == first ? distributions->facts(level.child).prob
                                            : distributions->ResidualProb(level, target, d.token);
      const double reach = AtMostOne(level.a * (p / d.prob()));
      if (reach > 0) {
        __syncthreads();
        if (threadIdx.x == 0) levels[depth] = level;
        __syncthreads();
        ++depth;
        level = StartAt(level.child, distributions->node(level.child).first_child, reach);
        continue;
      }
    } else {
      if (v == 0 || distributions->Accept(level.a, v)) {
        const uint64_t bits = distributions->ResidualBits(v);
        return {v, first < 0 ? distributions->SampleToken(target, bits)
                             : distributions->SampleResidual(level, target, bits)};
      }
      --depth;
      level = levels[depth];
    }
    // The child of `level` was rejected with its subtree. After the last child its parent may be
    // rejected too.
    while (level.node > 0 && distributions->node(level.child).next_sibling < 0 &&
           !distributions->Accept(level.a, level.node)) {
      --depth;
      level = levels[depth];
    }
    const TargetRow& row = distributions->Target(level.node);
    const double s = distributions->Subtract(level.a, distributions->Draft(level.child),
                                             level.child, &level, row);
    level.a = AcceptRatio(s, level.a);
    level.child = distributions->node(level.child).next_sibling;
  }
}

__device__ Decision Decide(Walk walk, SequenceDistributions* distributions, LevelState* levels) {
  switch (walk) {
    case Walk::kBlock:
      return Block(distributions, levels);
    case Walk::kTraversal:
      return Traversal(distributions, levels);
    case Walk::kFollowTarget:
      return FollowTarget(distributions);
    default:
      return Recursive(distributions);
  }
}

/*! \brief Log-probabilities of the emitted tokens, a node of the path at each depth. */
__device__ KVCTL_NOINLINE void WriteLogProbs(const SequenceDistributions& distributions,
                                             const Decision& decision, double* log_probs) {
  if (threadIdx.x != 0) return;
  const int32_t depth = distributions.node(decision.node).depth;
  log_probs[depth] =
      distributions.LogProb(distributions.facts(decision.node).target, decision.bonus);
  for (int32_t v = decision.node; v > 0; v = distributions.node(v).parent) {
    log_probs[distributions.node(v).depth - 1] = distributions.facts(v).log_prob;
  }
}

/*! \brief A block per sequence, one on a multiprocessor: without that bound, ptxas makes room for
 * two and spills registers. */
__global__ void __launch_bounds__(kMaxWalkThreads, 1) WalkTreesKernel(VerifyParams params) {
  KVCTL_DYNAMIC_SHARED(shared);
  WaitForPrevious();
  const VerifySequence& sequence = reinterpret_cast<const VerifySequence*>(
      reinterpret_cast<const char*>(params.plan) + params.plan->sequences)[blockIdx.x];
  auto* walk_shared = reinterpret_cast<WalkShared*>(shared);
  SequenceDistributions distributions(params, sequence, walk_shared,
                                      reinterpret_cast<NodeFacts*>(walk_shared + 1));
  distributions.ReadNodes();
  const Decision decision =
      Decide(params.walk, &distributions, params.levels + sequence.first_node);
  if (params.log_probs != nullptr && !distributions.irregular()) {
    WriteLogProbs(distributions, decision, params.log_probs + sequence.first_node);
  }
  if (threadIdx.x != 0) return;
  params.outcomes[blockIdx.x] = {decision.node, decision.bonus, distributions.irregular() ? 1 : 0,
                                 0};
}

}  // namespace

cudaError_t WalkTrees(const VerifyParams& params, int32_t num_threads, cudaStream_t stream) {
  if (params.num_sequences == 0) return cudaSuccess;
  constexpr size_t kSharedBytes =
      sizeof(WalkShared) + SequenceNodes::kMostShared * sizeof(NodeFacts);
  static_assert(kSharedBytes <= 48 * 1024, "what any kernel may have");
  return LaunchOverlapping(params.overlaps, WalkTreesKernel,
                           dim3(static_cast<unsigned>(params.num_sequences)),
                           dim3(static_cast<unsigned>(num_threads)), kSharedBytes, stream, params);
}

}  // namespace kvctl::cuda
