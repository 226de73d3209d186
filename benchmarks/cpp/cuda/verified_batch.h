/*!
 * \file benchmarks/cpp/cuda/verified_batch.h
 * \brief A batch of drafted chains whose drafts are all accepted, or rejected at once.
 */
#ifndef KVCTL_BENCHMARKS_CUDA_VERIFIED_BATCH_H_
#define KVCTL_BENCHMARKS_CUDA_VERIFIED_BATCH_H_

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "core/verify/verify.h"
#include "device.h"
#include "kernels/cuda/verify/verify_device.h"
#include "kernels/sampling.h"

namespace kvctl_bench {

constexpr int32_t kDrafts = 5, kNodes = kDrafts + 1;

/*! \brief Drafts of `batch` sequences: drawn from what the target says, or one token that it
 * never says. */
class VerifiedBatch {
 public:
  VerifiedBatch(int32_t vocab, int32_t batch, bool accepted)
      : vocab_(vocab),
        batch_(batch),
        accepted_(accepted),
        logits_(size_t(batch) * kNodes * vocab),
        probs_(logits_.size(), 0.f),
        tokens_(size_t(batch) * kNodes, 0) {
    std::mt19937 rng(vocab + accepted);
    std::normal_distribution<float> normal(0.f, 2.f);
    for (float& logit : logits_) logit = normal(rng);
    for (int32_t row = 0; row < batch * kNodes; ++row) {
      float* logits = logits_.data() + size_t(row) * vocab;
      float* probs = probs_.data() + size_t(row) * vocab;
      const auto likely = static_cast<int32_t>(std::max_element(logits, logits + vocab) - logits);
      const auto never = static_cast<int32_t>(std::min_element(logits, logits + vocab) - logits);
      if (accepted) {
        double total = 0;
        for (int32_t x = 0; x < vocab; ++x) total += std::exp(double(logits[x]));
        for (int32_t x = 0; x < vocab; ++x) {
          probs[x] = static_cast<float>(std::exp(double(logits[x])) / total);
        }
      } else {
        probs[never] = 1.f;
      }
      if (row % kNodes < kDrafts) tokens_[row + 1] = accepted ? likely : never;
    }
    for (int32_t i = 0; i < kNodes; ++i) {
      parents_.push_back(i - 1);
      rows_.push_back(i);
    }
    drawn_.assign(kNodes, kvctl::Drawn::kIndependent);
    device_logits_ = std::make_unique<DeviceMemory>(logits_.data(), logits_.size() * 4);
    device_probs_ = std::make_unique<DeviceMemory>(probs_.data(), probs_.size() * 4);
    verify_.reset(kvctl::cuda::CreateVerify(0));
  }

  /*! \brief Bytes of a read: each row of logits, and each of probabilities that a token was drawn
   * from, once. */
  double Bytes() const { return 4.0 * vocab_ * batch_ * (kNodes + kDrafts); }
  /*! \brief What the kernels read, in bytes of a read, counted in their source: all rows once; the
   * two rows of a rejected token again for the residual's sum, and one block of them, or of the
   * logits after the last token, to find the bonus. */
  double PredictedReads() const {
    const double block = std::min(1.0, double(kvctl::kVocabBlock) / vocab_);
    return 1 + (accepted_ ? block : 2 + 2 * block) / (kNodes + kDrafts);
  }

  /*! \brief Verifies on the device. Waits for it. */
  void OnDevice() {
    Make(&device_, device_logits_->data(), device_probs_->data());
    if (!verify_->Verify(kvctl::Rule::kTokenWise, vocab_, &device_.items, nullptr)) {
      std::fprintf(stderr, "verification on the device was refused\n");
      std::exit(1);
    }
  }
  /*! \brief Whether the device decided as the CPU does, bit for bit. */
  bool AgreesWithCpu() {
    OnDevice();
    Outputs cpu;
    Make(&cpu, logits_.data(), probs_.data());
    kvctl::VerifyItems(kvctl::Rule::kTokenWise, vocab_, kvctl::ShareItemsAmongThreads, &cpu.items);
    for (int32_t s = 0; s < batch_; ++s) {
      const kvctl::VerifyItem &one = device_.items[s], &other = cpu.items[s];
      if (one.num_nodes != other.num_nodes || one.num_tokens != other.num_tokens) return false;
      if (!std::equal(one.tokens, one.tokens + one.num_tokens, other.tokens)) return false;
      if (!std::equal(one.log_probs, one.log_probs + one.num_tokens, other.log_probs)) {
        return false;
      }
    }
    return true;
  }
  /*! \brief Accepted drafts of the last call on the device. */
  int32_t Accepted() const {
    int32_t accepted = 0;
    for (const kvctl::VerifyItem& item : device_.items) accepted += item.num_nodes;
    return accepted;
  }

 private:
  struct Outputs {
    std::vector<kvctl::VerifyItem> items;
    std::vector<int32_t> nodes, tokens;
    std::vector<double> log_probs;
  };

  void Make(Outputs* outputs, const void* logits, const void* probs) {
    const size_t size = size_t(batch_) * kNodes, row = size_t(vocab_) * sizeof(float);
    outputs->items.clear();
    outputs->nodes.assign(size, 0);
    outputs->tokens.assign(size, 0);
    outputs->log_probs.assign(size, 0);
    for (int32_t s = 0; s < batch_; ++s) {
      const size_t first = size_t(s) * kNodes;
      kvctl::VerifyItem item{};
      item.input.size = kNodes;
      item.input.tokens = tokens_.data() + first;
      item.input.parents = parents_.data();
      item.input.rows = rows_.data();
      item.input.drawn = drawn_.data();
      item.input.target = static_cast<const char*>(logits) + first * row;
      item.input.sampling = &sampling_;
      item.input.draft.probs = static_cast<const char*>(probs) + first * row;
      item.input.draft.type = kvctl::DType::kFloat32;
      item.input.draft.width = vocab_;
      item.stream = {7, static_cast<uint64_t>(s)};
      item.root_position = 100;
      item.noise = kvctl::Noise::kUniform;
      item.nodes = outputs->nodes.data() + first;
      item.tokens = outputs->tokens.data() + first;
      item.log_probs = outputs->log_probs.data() + first;
      outputs->items.push_back(item);
    }
  }

  const int32_t vocab_, batch_;
  const bool accepted_;
  std::vector<float> logits_, probs_;
  std::vector<int32_t> tokens_, parents_, rows_;
  std::vector<kvctl::Drawn> drawn_;
  kvctl::Sampling sampling_;
  Outputs device_;
  std::unique_ptr<DeviceMemory> device_logits_, device_probs_;
  std::unique_ptr<kvctl::CudaVerify> verify_;
};

}  // namespace kvctl_bench

#endif  // KVCTL_BENCHMARKS_CUDA_VERIFIED_BATCH_H_
