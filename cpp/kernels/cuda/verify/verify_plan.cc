#include "kernels/cuda/verify/verify_plan.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "core/support/exact_math.h"

namespace kvctl::cuda {
namespace {

std::optional<Walk> WalkOf(Rule rule) {
  switch (rule) {
    case Rule::kGreedy:
    case Rule::kTargetOnly:
    case Rule::kCoupled:
      return Walk::kFollowTarget;
    case Rule::kTokenWise:
      return Walk::kTokenWise;
    case Rule::kBlock:
      return Walk::kBlock;
    case Rule::kRecursive:
      return Walk::kRecursive;
    case Rule::kTraversal:
      return Walk::kTraversal;
    default:
      return std::nullopt;
  }
}

bool IsKnown(const SequenceInput& input) {
  const Sampling& sampling = *input.sampling;
  return !input.probabilities && !sampling.truncates() && !sampling.penalizes() &&
         sampling.logit_bias.empty() && input.bitmask == nullptr && input.draft.ids == nullptr &&
         input.target_type != DType::kFloat64 && input.target_stride == 0;
}

/*! \brief As core/sampling/sampling.cc scales logits. */
float Scale(double temperature) {
  return static_cast<float>(std::min(kvctl::kLog2E / temperature, 1e30));
}

void AddNodes(const SequenceInput& input, std::vector<VerifyNode>* nodes) {
  const size_t at = nodes->size();
  std::vector<int32_t> children(input.size, 0);
  for (int32_t i = 0; i < input.size; ++i) {
    nodes->push_back({input.tokens[i], input.parents[i], input.rows[i],
                      static_cast<int32_t>(input.drawn[i]), -1, -1, 0, 0});
  }
  VerifyNode* node = nodes->data() + at;
  for (int32_t i = input.size - 1; i > 0; --i) {
    // Nothing below a drafted stop token is reached, as in core/verify/tree_verifier.cc. Its own
    // row is read here, but what follows it is dropped.
    if (input.parents[i] > 0 && input.IsStop(input.tokens[input.parents[i]])) continue;
    VerifyNode& parent = node[input.parents[i]];
    node[i].next_sibling = parent.first_child;
    parent.first_child = i;
    ++children[input.parents[i]];
  }
  int32_t steps = 0;
  for (int32_t i = 0; i < input.size; ++i) {
    if (i > 0) node[i].depth = node[input.parents[i]].depth + 1;
    node[i].first_step = steps;
    steps += children[i];
  }
}

template <typename T>
int32_t Append(const std::vector<T>& values, std::vector<uint64_t>* arena) {
  const size_t at = arena->size(), bytes = values.size() * sizeof(T);
  arena->resize(at + (bytes + 15) / 16 * 2);
  if (bytes > 0) std::memcpy(arena->data() + at, values.data(), bytes);
  return static_cast<int32_t>(at * sizeof(uint64_t));
}

}  // namespace

bool VerifyPlanBuilder::Build(Rule rule, int32_t vocab_size, const std::vector<VerifyItem>& items) {
  const std::optional<Walk> walk = WalkOf(rule);
  if (!walk) return false;
  walk_ = *walk;
  std::vector<VerifySequence> sequences;
  std::vector<VerifyNode> nodes;
  std::vector<RowJob> jobs;
  for (const VerifyItem& item : items) {
    const SequenceInput& input = item.input;
    if (!IsKnown(input)) return false;
    CheckRule(rule, input);
    const double temperature = input.sampling->temperature;
    VerifySequence sequence{};
    sequence.target = input.target;
    sequence.seed = item.stream.seed;
    sequence.request = item.stream.request;
    sequence.root_position = item.root_position;
    sequence.greedy = temperature == 0;
    sequence.scale = Scale(sequence.greedy ? 1.0 : temperature);
    sequence.gumbel = item.noise == Noise::kGumbel;
    sequence.target_type = input.target_type;
    sequence.draft_f64 = input.draft.type == DType::kFloat64;
    sequence.draft_per_node = input.draft.per_node;
    sequence.first_node = static_cast<int32_t>(nodes.size());
    sequence.num_nodes = input.size;
    AddNodes(input, &nodes);

    const int32_t rows = *std::max_element(input.rows, input.rows + input.size) + 1;
    const int64_t element = DTypeSize(sequence.target_type);
    sequence.target_rows = static_cast<int32_t>(jobs.size());
    for (int32_t row = 0; row < rows; ++row) {
      jobs.push_back({static_cast<const char*>(input.target) + row * vocab_size * element,
                      sequence.scale, sequence.target_type, 0, 0});
    }
    bool drawn = false;
    for (int32_t i = 1; i < input.size; ++i) drawn |= input.drawn[i] != Drawn::kDeterministic;
    if (walk_ != Walk::kFollowTarget && drawn) {
      if (input.draft.probs == nullptr) return false;  // an error that the CPU reports
      sequence.draft = input.draft.probs;
      sequence.draft_rows = static_cast<int32_t>(jobs.size());
      const int32_t distributions = input.draft.per_node ? input.size : rows;
      const int64_t width = sequence.draft_f64 ? 8 : 4;
      for (int32_t row = 0; row < distributions; ++row) {
        jobs.push_back({static_cast<const char*>(input.draft.probs) + row * vocab_size * width, 0,
                        DType::kFloat32, 1, sequence.draft_f64});
      }
    }
    sequences.push_back(sequence);
  }
  num_jobs_ = static_cast<int32_t>(jobs.size());
  num_nodes_ = static_cast<int32_t>(nodes.size());
  arena_.assign((sizeof(VerifyHeader) + 15) / 16 * 2, 0);
  VerifyHeader header{static_cast<int32_t>(items.size()), num_jobs_, 0, 0, 0};
  header.sequences = Append(sequences, &arena_);
  header.nodes = Append(nodes, &arena_);
  header.jobs = Append(jobs, &arena_);
  std::memcpy(arena_.data(), &header, sizeof(header));
  return true;
}

}  // namespace kvctl::cuda
