// The kernels and the CPU make bitwise the same decisions on the same inputs.
#include <algorithm>
#include <cstdlib>
#include <random>

#include "check.h"
#include "core/verify/verify.h"
#include "device_array.h"
#include "kernels/convert.h"
#include "kernels/cuda/verify/verify.cuh"
#include "kernels/sampling.h"

namespace kvctl {
namespace {

constexpr Rule kChainRules[] = {Rule::kTargetOnly, Rule::kTokenWise, Rule::kBlock, Rule::kRecursive,
                                Rule::kTraversal};
constexpr Rule kTreeRules[] = {Rule::kTargetOnly, Rule::kRecursive, Rule::kTraversal,
                               Rule::kCoupled};

/*! \brief A random batch: trees, logits, distributions, and tokens drawn from them. */
class Batch {
 public:
  /*! \param processed Whether requests truncate, penalise, add to or mask their logits.
   * \param most_nodes of a sequence; 0: few. */
  Batch(std::mt19937* rng, int32_t vocab, int32_t sequences, Rule rule, bool chains, bool processed,
        int32_t most_nodes = 0)
      : rng_(*rng), vocab_(vocab), rule_(rule), processed_(processed), most_nodes_(most_nodes) {
    logit_type_ = static_cast<DType>(Random(3));
    distribution_type_ = Random(2) == 0 ? DType::kFloat32 : DType::kFloat64;
    per_node_ = Random(4) == 0;
    for (int32_t s = 0; s < sequences; ++s) AddSequence(chains);
    for (Tree& tree : trees_) Draw(&tree);
  }

  /*! \brief The CPU's decisions: nodes, tokens and log-probabilities of each sequence. */
  std::vector<VerifyItem> OnCpu() {
    std::vector<VerifyItem> items = Items(logits_.data(), distributions_.data());
    VerifyItems(rule_, vocab_, ShareItemsAmongThreads, &items);
    return items;
  }

  /*! \brief The device's decisions; empty if the call is left to the CPU. \param shift by so many
   * elements are the rows of logits off the addresses that the device's memory begins at. */
  std::vector<cuda::VerifyOutcome> OnDevice(int32_t threads, std::vector<double>* log_probs,
                                            int32_t shift = 0) {
    const size_t shift_bytes = shift * DTypeSize(logit_type_);
    std::vector<uint8_t> shifted(shift_bytes, 0xFF);
    shifted.insert(shifted.end(), logits_.begin(), logits_.end());
    const DeviceArray<uint8_t> logits(shifted), distributions(distributions_);
    const std::vector<VerifyItem> items = Items(logits.data() + shift_bytes, distributions.data());
    cuda::VerifyPlanBuilder builder;
    if (!builder.Build(rule_, vocab_, items)) return {};
    const int64_t blocks = (vocab_ + kVocabBlock - 1) / kVocabBlock;
    const DeviceArray<uint64_t> arena(builder.arena());
    const DeviceArray<cuda::BlockSum> sums(builder.num_jobs() * blocks);
    const DeviceArray<cuda::DistributionStep> steps(builder.num_nodes());
    const DeviceArray<cuda::LevelState> levels(builder.num_nodes());
    const DeviceArray<cuda::VerifyOutcome> outcomes(items.size());
    const DeviceArray<double> log_probs_out(builder.num_nodes());
    const DeviceArray<float> scratch(int64_t{builder.num_processed()} * vocab_);
    const DeviceArray<cuda::NodeFacts> facts(builder.num_nodes());
    const DeviceArray<cuda::TokenScore> scores(builder.num_nodes() * blocks);
    cuda::VerifyParams params{};
    params.plan = reinterpret_cast<const cuda::VerifyHeader*>(arena.data());
    params.num_sequences = static_cast<int32_t>(items.size());
    params.num_jobs = builder.num_jobs();
    params.num_processed = builder.num_processed();
    params.vocab_size = vocab_;
    params.walk = builder.walk();
    params.sums = sums.data();
    params.steps = steps.data();
    params.levels = levels.data();
    params.facts = facts.data();
    params.outcomes = outcomes.data();
    params.log_probs = log_probs_out.data();
    params.scratch = scratch.data();
    params.scores = scores.data();
    params.num_nodes = builder.num_nodes();
    Must(cuda::ProcessRows(params, nullptr));
    Must(cuda::SumRows(params, nullptr));
    if (builder.cuts()) Must(cuda::CutRows(params, nullptr));
    if (builder.noise()) Must(cuda::ScoreNoise(params, nullptr));
    Must(cuda::WalkTrees(params, threads, nullptr));
    *log_probs = log_probs_out.Read();
    return outcomes.Read();
  }

  std::vector<uint8_t>& logits() { return logits_; }

  /*! \brief Makes the rows of draft distributions that no node was drawn from NaN. */
  void PoisonUnusedRows() {
    const size_t row_bytes = vocab_ * DTypeSize(distribution_type_);
    for (const Tree& tree : trees_) {
      std::vector<bool> used(tree.tokens.size(), false);
      for (size_t i = 1; i < tree.tokens.size(); ++i) {
        if (tree.drawn[i] == Drawn::kDeterministic) continue;
        used[per_node_ ? i : tree.parents[i]] = true;
      }
      for (size_t row = 0; row < used.size(); ++row) {
        if (used[row]) continue;
        uint8_t* at = distributions_.data() + (tree.first_node + row) * row_bytes;
        std::fill(at, at + row_bytes, uint8_t{0xFF});
      }
    }
  }

 private:
  struct Tree {
    std::vector<int32_t> tokens, parents, rows;
    std::vector<Drawn> drawn;
    Sampling sampling;
    std::vector<int32_t> history;
    std::vector<uint32_t> bitmask;
    int64_t first_node;
    std::vector<int32_t> out_nodes, out_tokens;
    std::vector<double> out_log_probs;
  };

  int32_t Random(int32_t n) { return static_cast<int32_t>(rng_() % n); }

  void AddSequence(bool chains) {
    Tree tree;
    const int32_t size = most_nodes_ > 0 ? most_nodes_ - Random(20) : 1 + Random(chains ? 7 : 9);
    tree.first_node = num_nodes_;
    num_nodes_ += size;
    for (int32_t i = 0; i < size; ++i) {
      tree.parents.push_back(i == 0 ? -1 : chains ? i - 1 : Random(i));
      tree.rows.push_back(i);
      tree.tokens.push_back(Random(vocab_));
    }
    const auto kind = static_cast<Drawn>(chains ? Random(2) : Random(3));
    tree.drawn.assign(size, kind);
    if (Random(4) == 0) {
      for (Drawn& drawn : tree.drawn) drawn = static_cast<Drawn>(Random(chains ? 2 : 3));
    }
    const double temperatures[] = {1.0, 1.0, 0.6, 1.7, 0.0};
    tree.sampling.temperature = temperatures[Random(5)];
    if (processed_) Process(&tree.sampling);
    for (int32_t i = Random(6); i > 0; --i) tree.history.push_back(Random(vocab_));
    const bool masks = processed_ && Random(3) == 0;
    const bool ties = processed_ && Random(3) == 0;
    const float spread = Random(3) == 0 ? 12.f : 2.f;
    std::normal_distribution<float> normal(0.f, spread);
    for (int32_t i = 0; i < size; ++i) {
      std::vector<float> row(vocab_);
      for (float& logit : row) logit = Random(5) == 0 ? -INFINITY : normal(rng_);
      const int32_t sure = Random(vocab_);
      row[sure] = 1;
      for (float& logit : row) logit = ties ? std::round(logit / 2) : logit;
      if (masks) AddMask(&tree, sure);
      AddLogits(row);
      AddDistribution(row);
    }
    trees_.push_back(std::move(tree));
  }

  /*! \brief One of the parameters, or several. */
  void Process(Sampling* sampling) {
    const int32_t which = Random(6);
    const bool all = which == 5;
    const double shares[] = {0.05, 0.4, 0.7, 0.95, 0.999};
    if (all || which == 0) sampling->top_k = 1 + Random(std::min(vocab_, 60));
    if (all || which == 1) sampling->top_p = shares[Random(5)];
    if (all || which == 2) sampling->min_p = shares[Random(5)];
    if (all || which == 3) {
      sampling->repetition_penalty = 1.3;
      sampling->presence_penalty = 0.4;
      sampling->frequency_penalty = 0.15;
    }
    if (all || which == 4) {
      for (int32_t i = 0; i < 4; ++i) {
        sampling->logit_bias.emplace_back(Random(vocab_), static_cast<float>(Random(9) - 4) * 0.3f);
      }
      sampling->logit_bias.push_back(sampling->logit_bias.front());  // named twice: added twice
    }
  }

  /*! \brief A node's row of the bitmask. */
  void AddMask(Tree* tree, int32_t sure) {
    const size_t at = tree->bitmask.size();
    for (int32_t word = 0; word < (vocab_ + 31) / 32; ++word) {
      tree->bitmask.push_back(static_cast<uint32_t>(rng_() | rng_()));
    }
    tree->bitmask[at + sure / 32] |= 1u << sure % 32;
  }

  void AddLogits(const std::vector<float>& row) {
    const size_t at = logits_.size(), element = logit_type_ == DType::kFloat32 ? 4 : 2;
    logits_.resize(at + row.size() * element);
    for (size_t i = 0; i < row.size(); ++i) {
      void* to = logits_.data() + at + i * element;
      if (logit_type_ == DType::kFloat32) *static_cast<float*>(to) = row[i];
      if (logit_type_ == DType::kFloat16) FromFloat(row[i], static_cast<Float16*>(to));
      if (logit_type_ == DType::kBFloat16) FromFloat(row[i], static_cast<BFloat16*>(to));
    }
  }

  /*! \brief A distribution equal to the target's, a different one, or a sparse one. */
  void AddDistribution(const std::vector<float>& logits) {
    std::vector<double> distribution(vocab_);
    const int32_t kind = Random(3);
    double total = 0;
    for (int32_t x = 0; x < vocab_; ++x) {
      distribution[x] = kind == 0   ? std::exp(logits[x])
                        : kind == 1 ? double(1 + Random(100))
                                    : (Random(4) == 0 ? 1.0 + Random(9) : 0.0);
      total += distribution[x];
    }
    if (total == 0) distribution[0] = total = 1;
    const size_t at = distributions_.size(),
                 element = distribution_type_ == DType::kFloat32 ? 4 : 8;
    distributions_.resize(at + distribution.size() * element);
    for (int32_t x = 0; x < vocab_; ++x) {
      distribution[x] /= total;
      if (distribution_type_ == DType::kFloat32) {
        reinterpret_cast<float*>(distributions_.data() + at)[x] =
            static_cast<float>(distribution[x]);
      } else {
        reinterpret_cast<double*>(distributions_.data() + at)[x] = distribution[x];
      }
    }
    distribution_.push_back(std::move(distribution));
  }

  /*! \brief Draws tokens as the tree's `drawn` says. Where that is impossible, the node becomes
   * deterministic. */
  void Draw(Tree* tree) {
    for (size_t i = 1; i < tree->tokens.size(); ++i) {
      if (tree->drawn[i] == Drawn::kDeterministic) continue;
      const int64_t row = tree->first_node + (per_node_ ? int64_t(i) : tree->parents[i]);
      std::vector<double> distribution = distribution_[row];
      for (size_t s = 1; s < i && tree->drawn[i] == Drawn::kWithoutReplacement; ++s) {
        if (tree->parents[s] == tree->parents[i] && !per_node_) distribution[tree->tokens[s]] = 0;
      }
      double total = 0;
      for (double p : distribution) total += p;
      if (total < 1e-9) {
        tree->drawn[i] = Drawn::kDeterministic;
        continue;
      }
      std::discrete_distribution<int32_t> sampler(distribution.begin(), distribution.end());
      tree->tokens[i] = sampler(rng_);
    }
  }

  std::vector<VerifyItem> Items(const void* logits, const void* distributions) {
    std::vector<VerifyItem> items;
    const int64_t logit_row = vocab_ * (logit_type_ == DType::kFloat32 ? 4 : 2);
    const int64_t distribution_row = vocab_ * (distribution_type_ == DType::kFloat32 ? 4 : 8);
    for (Tree& tree : trees_) {
      VerifyItem item{};
      const auto size = static_cast<int32_t>(tree.tokens.size());
      item.input.size = size;
      item.input.tokens = tree.tokens.data();
      item.input.parents = tree.parents.data();
      item.input.rows = tree.rows.data();
      item.input.drawn = tree.drawn.data();
      item.input.target = static_cast<const char*>(logits) + tree.first_node * logit_row;
      item.input.target_type = logit_type_;
      item.input.sampling = &tree.sampling;
      item.input.history = tree.history.data();
      item.input.history_size = static_cast<int64_t>(tree.history.size());
      if (!tree.bitmask.empty()) item.input.bitmask = tree.bitmask.data();
      item.input.draft.probs =
          static_cast<const char*>(distributions) + tree.first_node * distribution_row;
      item.input.draft.type = distribution_type_;
      item.input.draft.width = vocab_;
      item.input.draft.per_node = per_node_;
      item.stream = {77, static_cast<uint64_t>(tree.first_node)};
      item.root_position = static_cast<uint32_t>(100 + tree.first_node);
      item.noise = rule_ == Rule::kCoupled ? Noise::kGumbel : Noise::kUniform;
      tree.out_nodes.assign(size, 0);
      tree.out_tokens.assign(size, 0);
      tree.out_log_probs.assign(size, 0);
      item.nodes = tree.out_nodes.data();
      item.tokens = tree.out_tokens.data();
      item.log_probs = tree.out_log_probs.data();
      items.push_back(item);
    }
    return items;
  }

  std::mt19937& rng_;
  const int32_t vocab_;
  const Rule rule_;
  const bool processed_;
  const int32_t most_nodes_;
  DType logit_type_, distribution_type_;
  bool per_node_;
  int64_t num_nodes_ = 0;
  std::vector<Tree> trees_;
  std::vector<uint8_t> logits_, distributions_;
  std::vector<std::vector<double>> distribution_;
};

/*! \brief Rounds of small batches. KVCTL_CUDA_ROUNDS sets more than the suite has time for. */
int32_t Rounds() {
  const char* rounds = std::getenv("KVCTL_CUDA_ROUNDS");
  return rounds == nullptr ? 6 : std::atoi(rounds);
}

/*! \brief Checks a batch. Returns the number of accepted drafts: a test without any shows little.
 */
int64_t CheckBatch(Batch* batch, int32_t threads, int32_t shift = 0) {
  std::vector<double> log_probs;
  const std::vector<cuda::VerifyOutcome> device = batch->OnDevice(threads, &log_probs, shift);
  const std::vector<VerifyItem> cpu = batch->OnCpu();  // last: its outputs are stored in the batch
  EXPECT_EQ(device.size(), cpu.size());
  int64_t accepted = 0, at = 0;
  for (size_t s = 0; s < device.size(); ++s) {
    EXPECT_EQ(device[s].irregular, 0);
    EXPECT_EQ(device[s].node, cpu[s].num_nodes == 0 ? 0 : cpu[s].nodes[cpu[s].num_nodes - 1]);
    EXPECT_EQ(device[s].bonus, cpu[s].tokens[cpu[s].num_tokens - 1]);
    for (int32_t i = 0; i < cpu[s].num_tokens; ++i) {
      EXPECT_EQ(log_probs[at + i], cpu[s].log_probs[i]);
    }
    accepted += cpu[s].num_nodes;
    at += cpu[s].input.size;
  }
  return accepted;
}
int64_t CheckBatch(std::mt19937* rng, int32_t vocab, Rule rule, bool chains, int32_t threads,
                   bool processed = false) {
  Batch batch(rng, vocab, 4, rule, chains, processed);
  return CheckBatch(&batch, threads);
}

}  // namespace

TEST(CudaVerificationDecidesAsTheCpuOnSmallVocabularies) {
  std::mt19937 rng(11);
  InEveryOrder([&] {
    int64_t accepted = 0;
    for (int32_t round = 0; round < Rounds(); ++round) {
      for (const int32_t vocab : {3, 5, 40}) {
        for (const Rule rule : kChainRules) accepted += CheckBatch(&rng, vocab, rule, true, 64);
        for (const Rule rule : kTreeRules) accepted += CheckBatch(&rng, vocab, rule, false, 64);
      }
    }
    EXPECT(accepted > 0);
  });
}

TEST(CudaVerificationDecidesAsTheCpuOverSeveralBlocks) {
  std::mt19937 rng(12);
  for (const int32_t vocab : {4097, 9000}) {
    for (const Rule rule : kChainRules) CheckBatch(&rng, vocab, rule, true, 128);
    for (const Rule rule : kTreeRules) CheckBatch(&rng, vocab, rule, false, 64);
  }
}

TEST(CudaVerificationOfProcessedLogitsDecidesAsTheCpu) {
  std::mt19937 rng(14);
  InEveryOrder([&] {
    int64_t accepted = 0;
    for (int32_t round = 0; round < Rounds(); ++round) {
      for (const int32_t vocab : {3, 40, 300}) {
        for (const Rule rule : kChainRules)
          accepted += CheckBatch(&rng, vocab, rule, true, 64, true);
        for (const Rule rule : kTreeRules)
          accepted += CheckBatch(&rng, vocab, rule, false, 64, true);
      }
    }
    EXPECT(accepted > 0);
  });
}

TEST(CudaVerificationOfProcessedLogitsDecidesAsTheCpuOverSeveralBlocks) {
  std::mt19937 rng(15);
  for (const int32_t vocab : {4097, 9000}) {
    for (const Rule rule : kChainRules) CheckBatch(&rng, vocab, rule, true, 128, true);
    for (const Rule rule : kTreeRules) CheckBatch(&rng, vocab, rule, false, 64, true);
  }
}

TEST(CudaVerificationDecidesAsTheCpuWhateverTheRowsAddresses) {
  std::mt19937 rng(16);
  for (const int32_t shift : {1, 2, 3, 4}) {
    for (const Rule rule : kTreeRules) {
      Batch batch(&rng, 300, 4, rule, false, false);
      CheckBatch(&batch, 64, shift);
    }
  }
}

TEST(CudaVerificationOfLargeTreesDecidesAsTheCpu) {  // whose facts do not fit shared memory
  std::mt19937 rng(17);
  for (const Rule rule : kTreeRules) {
    Batch batch(&rng, 24, 2, rule, false, false, 100);
    CheckBatch(&batch, 128);
  }
  for (const Rule rule : kChainRules) {
    Batch batch(&rng, 24, 2, rule, true, false, 100);
    CheckBatch(&batch, 128);
  }
}

TEST(CudaVerificationReadsNoDistributionThatNothingWasDrawnFrom) {
  std::mt19937 rng(18);
  for (int32_t round = 0; round < 8; ++round) {
    for (const Rule rule : {Rule::kRecursive, Rule::kTraversal}) {
      Batch batch(&rng, 40, 4, rule, false, false);
      batch.PoisonUnusedRows();
      CheckBatch(&batch, 64);
    }
  }
}

TEST(CudaVerificationLeavesIrregularRowsToTheCpu) {
  std::mt19937 rng(13);
  for (const Rule rule : {Rule::kTargetOnly, Rule::kTokenWise}) {
    int32_t irregular = 0;
    for (int32_t round = 0; round < 20; ++round) {
      Batch batch(&rng, 20, 1, rule, true, false);
      for (uint8_t& byte : batch.logits()) byte = round % 2 == 0 ? 0xFF : byte;  // NaN
      std::vector<double> log_probs;
      irregular += batch.OnDevice(64, &log_probs)[0].irregular;
    }
    EXPECT_EQ(irregular, 10);
  }
}

}  // namespace kvctl
