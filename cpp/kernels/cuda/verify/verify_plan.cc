#include "kernels/cuda/verify/verify_plan.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_map>

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
  return !input.probabilities && input.draft.ids == nullptr &&
         input.target_type != DType::kFloat64 && input.target_stride == 0;
}

/*! \brief Adds the rows of a sequence whose logits are processed: one for each node, since
 * penalties and bitmasks are a node's own. Returns the job of the first. */
int32_t AddProcessedRows(const SequenceInput& input, int32_t vocab_size, RowPlan* rows) {
  const Sampling& sampling = *input.sampling;
  const bool penalizes = sampling.penalizes();
  std::unordered_map<int32_t, int32_t> history;
  for (int64_t i = 0; penalizes && i < input.history_size; ++i) ++history[input.history[i]];
  const int32_t processing =
      rows->AddProcessing(sampling, RowPlan::Counts(history.begin(), history.end()));
  const int64_t row_bytes = vocab_size * DTypeSize(input.target_type);
  const int32_t first = rows->num_jobs();
  for (int32_t node = 0; node < input.size; ++node) {
    RowInput row;
    row.values = static_cast<const char*>(input.target) + input.rows[node] * row_bytes;
    row.type = input.target_type;
    if (input.bitmask != nullptr) {
      row.bitmask = input.bitmask + (int64_t{vocab_size} + 31) / 32 * node;
    }
    std::unordered_map<int32_t, int32_t> path;
    for (int32_t v = node; penalizes && v >= 0; v = input.parents[v]) {
      const int32_t token = input.tokens[v];
      if (token < 0) continue;
      const auto seen = history.find(token);
      ++path.emplace(token, seen == history.end() ? 0 : seen->second).first->second;
    }
    rows->AddProcessed(row, sampling, processing, RowPlan::Counts(path.begin(), path.end()));
  }
  return first;
}

void AddNodes(const SequenceInput& input, int32_t sequence, std::vector<VerifyNode>* nodes) {
  const size_t at = nodes->size();
  std::vector<int32_t> children(input.size, 0);
  for (int32_t i = 0; i < input.size; ++i) {
    nodes->push_back({input.tokens[i], input.parents[i], input.rows[i],
                      static_cast<int32_t>(input.drawn[i]), -1, -1, 0, 0, -1, sequence});
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

/*! \brief Adds the rows that nodes were drawn from, each once: not those of leaves, which may hold
 * anything. */
void AddDistributions(const SequenceInput& input, int32_t vocab_size, VerifyNode* nodes,
                      RowPlan* rows) {
  const bool f64 = input.draft.type == DType::kFloat64;
  const int64_t row_bytes = int64_t{vocab_size} * (f64 ? 8 : 4);
  std::unordered_map<int32_t, int32_t> jobs;
  for (int32_t i = 1; i < input.size; ++i) {
    if (input.drawn[i] == Drawn::kDeterministic) continue;
    const int32_t row = input.draft.per_node ? i : input.rows[input.parents[i]];
    const auto [found, added] = jobs.emplace(row, rows->num_jobs());
    if (added) {
      rows->AddDistribution(static_cast<const char*>(input.draft.probs) + row * row_bytes, f64);
    }
    nodes[i].draft_job = found->second;
  }
}

}  // namespace

bool VerifyPlanBuilder::Build(Rule rule, int32_t vocab_size, const std::vector<VerifyItem>& items) {
  const std::optional<Walk> walk = WalkOf(rule);
  if (!walk) return false;
  walk_ = *walk;
  noise_ = false;
  std::vector<VerifySequence> sequences;
  std::vector<VerifyNode> nodes;
  arena_.assign((sizeof(VerifyHeader) + 15) / 16 * 2, 0);
  RowPlan plan(vocab_size, &arena_);
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
    sequence.scale = RowPlan::Scale(*input.sampling);
    sequence.gumbel = item.noise == Noise::kGumbel;
    noise_ |= sequence.gumbel != 0 && sequence.greedy == 0 && walk_ == Walk::kFollowTarget;
    sequence.target_type = input.target_type;
    sequence.draft_f64 = input.draft.type == DType::kFloat64;
    sequence.draft_per_node = input.draft.per_node;
    sequence.first_node = static_cast<int32_t>(nodes.size());
    sequence.num_nodes = input.size;
    AddNodes(input, static_cast<int32_t>(sequences.size()), &nodes);

    const int32_t rows = *std::max_element(input.rows, input.rows + input.size) + 1;
    if (RowPlan::Processes(*input.sampling, input.bitmask)) {
      sequence.target = nullptr;
      sequence.target_type = DType::kFloat32;
      sequence.scratch_row = plan.num_processed();
      sequence.cuts = input.sampling->truncates() && !sequence.greedy;
      sequence.target_rows = AddProcessedRows(input, vocab_size, &plan);
    } else {
      const int64_t element = DTypeSize(sequence.target_type);
      sequence.target_rows = plan.num_jobs();
      for (int32_t row = 0; row < rows; ++row) {
        plan.AddLogits(static_cast<const char*>(input.target) + row * vocab_size * element,
                       sequence.target_type, sequence.scale);
      }
    }
    bool drawn = false;
    for (int32_t i = 1; i < input.size; ++i) drawn |= input.drawn[i] != Drawn::kDeterministic;
    if (walk_ != Walk::kFollowTarget && drawn) {
      if (input.draft.probs == nullptr) return false;  // an error that the CPU reports
      sequence.draft = input.draft.probs;
      AddDistributions(input, vocab_size, nodes.data() + sequence.first_node, &plan);
    }
    sequences.push_back(sequence);
  }
  num_jobs_ = plan.num_jobs();
  num_processed_ = plan.num_processed();
  cuts_ = plan.cuts();
  num_nodes_ = static_cast<int32_t>(nodes.size());
  VerifyHeader header{};
  header.num_sequences = static_cast<int32_t>(items.size());
  header.sequences = AppendTo(&arena_, sequences.data(), sequences.size());
  header.nodes = AppendTo(&arena_, nodes.data(), nodes.size());
  header.rows = plan.Finish();
  std::memcpy(arena_.data(), &header, sizeof(header));
  return true;
}

}  // namespace kvctl::cuda
