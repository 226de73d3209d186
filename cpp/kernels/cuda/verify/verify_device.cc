#include "kernels/cuda/verify/verify_device.h"

#include <algorithm>

#include "core/verify/draft.h"
#include "kernels/cuda/device/memory.h"
#include "kernels/cuda/verify/draft.cuh"
#include "kernels/cuda/verify/verify.cuh"
#include "kvctl/error.h"

namespace kvctl::cuda {
namespace {

class Verifier final : public CudaVerify {
 public:
  explicit Verifier(int device) : device_(device) {}

  bool Verify(Rule rule, int32_t vocab_size, std::vector<VerifyItem>* items, void* stream) final {
    if (items->empty()) return true;
    if (!plan_.Build(rule, vocab_size, *items)) return false;
    const DeviceScope device(device_);
    const bool log_probs = items->front().log_probs != nullptr;
    const auto size = static_cast<int32_t>(items->size());
    const size_t outcome_bytes = size * sizeof(VerifyOutcome);
    const size_t log_prob_bytes = log_probs ? plan_.num_nodes() * sizeof(double) : 0;
    // Kernels write these few bytes over the bus, which takes less time than a copy of them would.
    auto* results = static_cast<char*>(host_.Reserve(outcome_bytes + log_prob_bytes));
    auto* queue = static_cast<cudaStream_t>(stream);
    VerifyParams params = PrepareRows(size, vocab_size, results, queue);
    if (log_probs) {
      params.log_probs = reinterpret_cast<double*>(results + outcome_bytes);
    }
    if (plan_.noise()) {
      scores_.Reserve(plan_.num_nodes() * NumBlocks(vocab_size) * sizeof(TokenScore));
      params.scores = scores_.As<TokenScore>();
      Check(ScoreNoise(params, queue), "sampling");
    }
    Check(WalkTrees(params, NumThreads(vocab_size), queue), "verification");
    Check(cudaStreamSynchronize(queue), "verification");

    if (IsIrregular(results, size)) return false;
    const auto* outcomes = reinterpret_cast<const VerifyOutcome*>(results);
    const auto* log_prob = reinterpret_cast<const double*>(results + outcome_bytes);
    for (int32_t i = 0; i < size; ++i) {
      VerifyItem& item = (*items)[i];
      WriteOutcome({outcomes[i].node, outcomes[i].bonus}, &item);
      if (!log_probs) continue;
      for (int32_t t = 0; t < item.num_tokens; ++t) item.log_probs[t] = log_prob[t];
      log_prob += item.input.size;
    }
    return true;
  }

  bool Draft(Drawn how, int32_t n, DType probs_type, int32_t vocab_size,
             std::vector<DraftItem>* items, void* stream) final {
    if (items->empty()) return true;
    if (!plan_.Build(Rule::kTargetOnly, vocab_size, LoneRoots(*items))) return false;
    const DeviceScope device(device_);
    const auto size = static_cast<int32_t>(items->size());
    const size_t outcome_bytes = size * sizeof(VerifyOutcome);
    const size_t token_bytes = sizeof(int32_t) * size * n;
    results_.Reserve(outcome_bytes + token_bytes);  // on the device: the kernel reads tokens again
    auto* queue = static_cast<cudaStream_t>(stream);
    std::vector<DraftTarget> targets;
    for (const DraftItem& item : *items) {
      targets.push_back({item.probs, item.first_node, item.depth});
    }
    targets_.Copy(targets.data(), targets.size() * sizeof(DraftTarget), queue);
    DraftParams params{};
    params.rows = PrepareRows(size, vocab_size, results_.As<char>(), queue);
    params.targets = targets_.As<DraftTarget>();
    params.how = how;
    params.num_tokens = n;
    params.probs_type = probs_type;
    params.tokens = reinterpret_cast<int32_t*>(results_.As<char>() + outcome_bytes);
    Check(DraftRows(params, NumThreads(vocab_size), queue), "drafting");
    const size_t bytes = outcome_bytes + token_bytes;
    auto* host = static_cast<char*>(host_.Reserve(bytes));
    CopyToHost(host, results_.As<char>(), bytes, stream);

    if (IsIrregular(host, size)) return false;
    const auto* tokens = reinterpret_cast<const int32_t*>(host + outcome_bytes);
    for (int32_t i = 0; i < size; ++i) std::copy_n(tokens + i * n, n, (*items)[i].tokens);
    return true;
  }

  void CopyToHost(void* to, const void* from, size_t bytes, void* stream) final {
    const DeviceScope device(device_);
    auto* queue = static_cast<cudaStream_t>(stream);
    Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, queue), "copying to the host");
    Check(cudaStreamSynchronize(queue), "copying to the host");
  }

 private:
  /*! \brief Whether kernels may overlap with the one before. */
  static bool HasOverlaps(int device) {
    int major = 0;
    Check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "querying the device");
    return major >= 9;
  }
  /*! \brief Draws as sequences: one node each, whose token is not known. */
  static std::vector<VerifyItem> LoneRoots(const std::vector<DraftItem>& items) {
    static constexpr int32_t kNone = -1, kFirst = 0;
    static constexpr Drawn kDrawn = Drawn::kDeterministic;
    std::vector<VerifyItem> roots(items.size());
    for (size_t i = 0; i < items.size(); ++i) {
      SequenceInput& input = roots[i].input;
      input.size = 1;
      input.tokens = input.parents = &kNone;
      input.rows = &kFirst;
      input.drawn = &kDrawn;
      input.target = items[i].row.values;
      input.target_type = items[i].row.type;
      input.bitmask = items[i].row.bitmask;
      input.sampling = items[i].sampling;
      roots[i].stream = items[i].stream;
      roots[i].root_position = items[i].root_position;
    }
    return roots;
  }

  /*! \brief Uploads the plan, and queues all kernels that come before trees or draws. */
  VerifyParams PrepareRows(int32_t size, int32_t vocab_size, void* outcomes, cudaStream_t queue) {
    sums_.Reserve(plan_.num_jobs() * NumBlocks(vocab_size) * sizeof(BlockSum));
    steps_.Reserve(plan_.num_nodes() * sizeof(DistributionStep));
    depth_states_.Reserve(plan_.num_nodes() * sizeof(LevelState));
    facts_.Reserve(plan_.num_nodes() * sizeof(NodeFacts));
    scratch_.Reserve(sizeof(float) * plan_.num_processed() * vocab_size);
    arena_.Copy(plan_.arena().data(), plan_.arena().size() * sizeof(uint64_t), queue);
    VerifyParams params{};
    params.plan = arena_.As<VerifyHeader>();
    params.num_sequences = size;
    params.num_jobs = plan_.num_jobs();
    params.num_processed = plan_.num_processed();
    params.vocab_size = vocab_size;
    params.walk = plan_.walk();
    params.sums = sums_.As<BlockSum>();
    params.steps = steps_.As<DistributionStep>();
    params.levels = depth_states_.As<LevelState>();
    params.facts = facts_.As<NodeFacts>();
    params.num_nodes = plan_.num_nodes();
    params.overlaps = overlaps_;
    params.outcomes = static_cast<VerifyOutcome*>(outcomes);
    params.scratch = scratch_.As<float>();
    Check(ProcessRows(params, queue), "processing logits");
    Check(SumRows(params, queue), "summing rows");
    if (plan_.cuts()) Check(CutRows(params, queue), "truncating distributions");
    return params;
  }

  static bool IsIrregular(const char* results, int32_t size) {
    const auto* outcomes = reinterpret_cast<const VerifyOutcome*>(results);
    return std::any_of(outcomes, outcomes + size,
                       [](const VerifyOutcome& outcome) { return outcome.irregular != 0; });
  }

  static int64_t NumBlocks(int32_t vocab_size) {
    return (int64_t{vocab_size} + kVocabBlock - 1) / kVocabBlock;
  }
  /*! \brief A warp for every kWarpTokens of a row, as far as they fit. */
  static int32_t NumThreads(int32_t vocab_size) {
    constexpr int32_t kWarpTokens = 512;
    int32_t threads = 64;
    while (threads < kMaxWalkThreads && threads / 32 * kWarpTokens < vocab_size) threads *= 2;
    return threads;
  }

  const int device_;
  const bool overlaps_ = HasOverlaps(device_);
  VerifyPlanBuilder plan_;
  Upload arena_, targets_;
  DeviceBuffer sums_, steps_, depth_states_, facts_, scores_, results_, scratch_;
  PinnedBuffer host_;
};

}  // namespace

CudaVerify* CreateVerify(int device) { return new Verifier(device); }

}  // namespace kvctl::cuda
