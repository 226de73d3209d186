/*!
 * \file models.h
 * \brief The models that check_generate runs: two directories in the environment.
 */
#ifndef KVCTL_TESTS_PROGRAMS_MODELS_H_
#define KVCTL_TESTS_PROGRAMS_MODELS_H_

#include <kvctl/generate.h>

#include <cstdlib>
#include <random>
#include <vector>

/*! \brief KVCTL_TEST_MODEL, in a cache of some tokens. */
inline kvctl::ModelRunner LoadTarget(int64_t tokens = 1024, int64_t sequences = 8) {
  kvctl::Init();
  kvctl::RunnerOptions options;
  options.max_total_tokens = tokens;
  options.max_sequences = sequences;
  options.page_size = 4;
  return kvctl::ModelRunner::Load(std::getenv("KVCTL_TEST_MODEL"), options);
}

/*! \brief KVCTL_TEST_DRAFT_MODEL, which has the same vocabulary. */
inline kvctl::ModelRunner LoadDraftModel(int64_t tokens = 1024, int64_t sequences = 8) {
  kvctl::Init();
  kvctl::RunnerOptions options;
  options.max_total_tokens = tokens;
  options.max_sequences = sequences;
  options.page_size = 4;
  return kvctl::ModelRunner::Load(std::getenv("KVCTL_TEST_DRAFT_MODEL"), options);
}

/*! \brief Prompts of random lengths, of few tokens, so that they repeat themselves. */
inline std::vector<std::vector<int32_t>> RandomPrompts(int count, int longest, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::vector<int32_t>> prompts(count);
  for (std::vector<int32_t>& prompt : prompts) {
    prompt.resize(1 + random() % longest);
    for (int32_t& token : prompt) token = static_cast<int32_t>(random() % 12);
  }
  return prompts;
}

#endif  // KVCTL_TESTS_PROGRAMS_MODELS_H_
