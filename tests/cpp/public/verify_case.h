/*!
 * \file verify_case.h
 * \brief Random batches for tests of kvctl/verify.h.
 */
#ifndef KVCTL_TESTS_PUBLIC_VERIFY_CASE_H_
#define KVCTL_TESTS_PUBLIC_VERIFY_CASE_H_

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "kvctl/verify.h"

/*! \brief A batch and the memory that it points to; not to be moved. */
struct VerifyCase {
  kvctl::VerifyBatch batch;
  std::vector<float> logits, probs;

  VerifyCase(kvctl::Rule rule, int32_t vocab, int count, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, 2);
    const auto below = [&](int n) { return static_cast<int>(random() % n); };
    const bool chain = rule == kvctl::Rule::kTokenWise || rule == kvctl::Rule::kBlock;
    const bool paths = rule == kvctl::Rule::kBestOfK;
    batch.rule = rule;
    batch.drawn.clear();
    for (int b = 0; b < count; ++b) {
      const int size = paths ? 5 : 1 + below(6);
      const auto drawn =
          chain || paths ? kvctl::Drawn::kIndependent : static_cast<kvctl::Drawn>(below(3));
      std::vector<int32_t> tokens, parents;
      for (int i = 0; i < size; ++i) {
        parents.push_back(i == 0 ? -1 : paths ? std::max(0, i - 2) : chain ? i - 1 : below(i));
        int32_t token = below(vocab);
        const auto taken = [&] {
          for (int j = 1; j < i; ++j) {
            if (parents[j] == parents[i] && tokens[j] == token) return true;
          }
          return false;
        };
        while (drawn == kvctl::Drawn::kWithoutReplacement && taken()) token = below(vocab);
        tokens.push_back(token);
        batch.drawn.push_back(drawn);
      }
      batch.trees.emplace_back(tokens, parents);
      kvctl::Sampling sampling;
      if (rule == kvctl::Rule::kGreedy) {
        sampling.temperature = 0;
      } else {
        const double temperatures[] = {0, 0.7, 1, 1};
        sampling.temperature = temperatures[below(4)];
        if (below(3) == 0) sampling.top_p = 0.8;
        if (below(4) == 0) sampling.stop_tokens = {below(vocab), below(vocab)};
        if (below(4) == 0) sampling.logit_bias = {{below(vocab), 1.5f}};
      }
      batch.sampling.push_back(sampling);
      batch.request_ids.push_back(static_cast<uint64_t>(b) + (1ull << 40));
      batch.root_positions.push_back(below(1000));
      batch.num_rows += size;
    }
    batch.vocab_size = vocab;
    for (int64_t i = 0; i < batch.num_rows * vocab; ++i) {
      logits.push_back(below(9) == 0 && i % vocab > 0 ? -1e30f : normal(random));
      probs.push_back(1.0f / static_cast<float>(vocab));
    }
    batch.logits = logits.data();
    batch.draft_probs.probs = probs.data();
    batch.seed = 17;
    batch.log_probs = true;
  }
  VerifyCase(const VerifyCase&) = delete;
};

#endif  // KVCTL_TESTS_PUBLIC_VERIFY_CASE_H_
