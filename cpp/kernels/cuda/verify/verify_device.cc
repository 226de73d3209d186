#include "kernels/cuda/verify/verify_device.h"

#include "kernels/cuda/device/memory.h"
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
    const int64_t blocks = (vocab_size + kVocabBlock - 1) / kVocabBlock;
    const size_t outcome_bytes = size * sizeof(VerifyOutcome);
    const size_t log_prob_bytes = log_probs ? plan_.num_nodes() * sizeof(double) : 0;
    sums_.Reserve(plan_.num_jobs() * blocks * sizeof(BlockSum));
    steps_.Reserve(plan_.num_nodes() * sizeof(DistributionStep));
    depth_states_.Reserve(plan_.num_nodes() * sizeof(LevelState));
    results_.Reserve(outcome_bytes + log_prob_bytes);
    auto* host = static_cast<char*>(host_.Reserve(outcome_bytes + log_prob_bytes));
    auto* queue = static_cast<cudaStream_t>(stream);
    arena_.Copy(plan_.arena().data(), plan_.arena().size() * sizeof(uint64_t), queue);

    VerifyParams params{};
    params.plan = arena_.As<VerifyHeader>();
    params.num_sequences = size;
    params.num_jobs = plan_.num_jobs();
    params.vocab_size = vocab_size;
    params.walk = plan_.walk();
    params.sums = sums_.As<BlockSum>();
    params.steps = steps_.As<DistributionStep>();
    params.levels = depth_states_.As<LevelState>();
    params.outcomes = results_.As<VerifyOutcome>();
    if (log_probs) {
      params.log_probs = reinterpret_cast<double*>(results_.As<char>() + outcome_bytes);
    }
    Check(SumRows(params, queue), "summing rows");
    Check(WalkTrees(params, NumThreads(vocab_size), queue), "verification");
    Check(cudaMemcpyAsync(host, results_.As<void>(), outcome_bytes + log_prob_bytes,
                          cudaMemcpyDeviceToHost, queue),
          "fetching outcomes");
    Check(cudaStreamSynchronize(queue), "verification");

    const auto* outcomes = reinterpret_cast<const VerifyOutcome*>(host);
    const auto* log_prob = reinterpret_cast<const double*>(host + outcome_bytes);
    for (int32_t i = 0; i < size; ++i) {
      if (outcomes[i].irregular != 0) return false;
    }
    for (int32_t i = 0; i < size; ++i) {
      VerifyItem& item = (*items)[i];
      WriteOutcome({outcomes[i].node, outcomes[i].bonus}, &item);
      if (!log_probs) continue;
      for (int32_t t = 0; t < item.num_tokens; ++t) item.log_probs[t] = log_prob[t];
      log_prob += item.input.size;
    }
    return true;
  }

  void CopyToHost(void* to, const void* from, size_t bytes, void* stream) final {
    const DeviceScope device(device_);
    auto* queue = static_cast<cudaStream_t>(stream);
    Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, queue), "copying to the host");
    Check(cudaStreamSynchronize(queue), "copying to the host");
  }

 private:
  /*! \brief One warp per block of a row, as far as they fit. */
  static int32_t NumThreads(int32_t vocab_size) {
    int32_t threads = 64;
    while (threads < kMaxWalkThreads && threads / 32 * kVocabBlock < vocab_size) threads *= 2;
    return threads;
  }

  const int device_;
  VerifyPlanBuilder plan_;
  Upload arena_;
  DeviceBuffer sums_, steps_, depth_states_, results_;
  PinnedBuffer host_;
};

}  // namespace

CudaVerify* CreateVerify(int device) { return new Verifier(device); }

}  // namespace kvctl::cuda
