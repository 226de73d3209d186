// Decoding of a compiled model, plain or speculative, greedy or sampled, in C++ alone.
//
//   decode MODEL_DIR [--draft N] [--max-tokens N] [--temperature T] [--seed S] [--rule NAME] <
//   prompt
//
// The prompt is a list of token ids on standard input; the new ids go to standard output. With
// --draft 0 every forward yields one token. Otherwise up to N tokens are drafted by looking the
// last two up in what has been read and written so far, and kvctl::Verify decides which of them
// stay. Speculation takes fewer forwards. The text is the same in both ways at temperature 0, and
// for rule target_only with one seed; other rules, such as block, keep its distribution.
#include <kvctl/api.h>
#include <kvctl/model_runner.h>
#include <kvctl/verify.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using tvm::runtime::Tensor;

constexpr int64_t kSequence = 0;

struct Options {
  std::string model;
  int64_t max_tokens = 64;
  int64_t draft = 7;
  double temperature = 0;
  uint64_t seed = 0;
  kvctl::Rule rule = kvctl::Rule::kTargetOnly;  // which is greedy at temperature 0
};

kvctl::Rule RuleOf(const std::string& name) {
  for (int i = 0; i < kvctl::kNumRules; ++i) {
    if (name == kvctl::RuleName(static_cast<kvctl::Rule>(i))) return static_cast<kvctl::Rule>(i);
  }
  throw std::invalid_argument("there is no rule " + name);
}

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = i + 1 < argc;
    if (argument == "--draft" && has_value) {
      options.draft = std::atoll(argv[++i]);
    } else if (argument == "--max-tokens" && has_value) {
      options.max_tokens = std::atoll(argv[++i]);
    } else if (argument == "--temperature" && has_value) {
      options.temperature = std::atof(argv[++i]);
    } else if (argument == "--seed" && has_value) {
      options.seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (argument == "--rule" && has_value) {
      options.rule = RuleOf(argv[++i]);
    } else if (argument.rfind("--", 0) != 0 && options.model.empty()) {
      options.model = argument;
    } else {
      throw std::invalid_argument("unknown argument " + argument);
    }
  }
  if (options.model.empty()) throw std::invalid_argument("which model directory?");
  return options;
}

/*! \brief Up to n tokens that followed the latest earlier occurrence of the last two. */
std::vector<int32_t> Lookup(const std::vector<int32_t>& tokens, int64_t n) {
  const auto size = static_cast<int64_t>(tokens.size());
  for (int64_t end = size - 1; end >= 2; --end) {
    if (tokens[end - 2] != tokens[size - 2] || tokens[end - 1] != tokens[size - 1]) continue;
    return {tokens.begin() + end, tokens.begin() + std::min(end + n, size)};
  }
  return {};
}

/*!
 * \brief Verifies a chain by the logits behind it.
 * \param chain the last token, then the drafts behind it.
 * \param logits (chain, vocabulary) float32.
 * \param position the absolute position of the last token.
 */
kvctl::VerifiedSequence Verify(const Options& options, std::vector<int32_t> chain,
                               const Tensor& logits, size_t position) {
  kvctl::VerifyBatch batch;
  batch.rule = options.rule;
  batch.trees = {kvctl::TokenTree::Chain(std::move(chain))};
  batch.drawn = {kvctl::Drawn::kDeterministic};  // looked up, whatever the random numbers are
  batch.logits = static_cast<const char*>(logits->data) + logits->byte_offset;
  batch.num_rows = logits->shape[0];
  batch.vocab_size = logits->shape[1];
  batch.sampling.resize(1);
  batch.sampling[0].temperature = options.temperature;
  batch.seed = options.seed;
  batch.root_positions = {static_cast<int64_t>(position)};
  return kvctl::Verify(batch)[0];
}

/*! \brief One round: forwards the last token with drafts behind it, and commits what is accepted.
 *  \return the new tokens: the accepted drafts, then the bonus. */
std::vector<int32_t> Round(const Options& options, const std::vector<int32_t>& tokens,
                           const std::vector<int32_t>& drafts, kvctl::ModelRunner* runner) {
  std::vector<int32_t> chain = {tokens.back()};
  chain.insert(chain.end(), drafts.begin(), drafts.end());
  const Tensor logits = runner->Verify({kSequence}, {kvctl::TokenTree::Chain(chain)});
  const kvctl::VerifiedSequence verified = Verify(options, chain, logits, tokens.size() - 1);
  runner->cache()->Commit({kSequence}, {verified.kept});
  return verified.tokens;
}

void Run(const Options& options) {
  std::vector<int32_t> tokens;
  for (int32_t token; std::cin >> token;) tokens.push_back(token);

  kvctl::Init();
  kvctl::ModelRunner runner = kvctl::ModelRunner::Load(options.model);
  runner.cache()->AddSequence(kSequence);
  const size_t prompt_length = tokens.size();
  const Tensor logits = runner.Prefill({kSequence}, {tokens});
  tokens.push_back(Verify(options, {tokens.back()}, logits, prompt_length - 1).bonus);

  const auto begin = std::chrono::steady_clock::now();
  const auto wanted = prompt_length + static_cast<size_t>(std::max<int64_t>(options.max_tokens, 1));
  int64_t forwards = 0;
  while (tokens.size() < wanted) {
    const int64_t room = static_cast<int64_t>(wanted - tokens.size()) - 1;
    const auto drafts = Lookup(tokens, std::min(options.draft, room));
    const auto emitted = Round(options, tokens, drafts, &runner);
    tokens.insert(tokens.end(), emitted.begin(), emitted.end());
    ++forwards;
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;

  for (size_t i = prompt_length; i < tokens.size(); ++i) std::cout << tokens[i] << "\n";
  const auto decoded = static_cast<double>(tokens.size() - prompt_length - 1);
  std::cerr << decoded << " tokens after the first in " << forwards << " forwards, "
            << decoded / elapsed.count() << " tokens/s\n";
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Run(Parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << "decode: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
