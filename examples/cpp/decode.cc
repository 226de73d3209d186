// Greedy decoding of a compiled model, plain or speculative, in C++ alone.
//
//   decode MODEL_DIR [--draft N] [--max-tokens N] < prompt
//
// The prompt is a list of token ids on standard input; the new ids go to standard output. With
// --draft 0 every forward yields one token. Otherwise up to N tokens are drafted by looking the
// last two up in what has been read and written so far, verified in one forward, and those that the
// model agrees with are kept. Both ways give the same tokens; speculation takes fewer forwards.
#include <kvctl/api.h>
#include <kvctl/model_runner.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

namespace {

using tvm::runtime::Tensor;

constexpr int64_t kSequence = 0;

struct Options {
  std::string model;
  int64_t max_tokens = 64;
  int64_t draft = 7;
};

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = i + 1 < argc;
    if (argument == "--draft" && has_value) {
      options.draft = std::atoll(argv[++i]);
    } else if (argument == "--max-tokens" && has_value) {
      options.max_tokens = std::atoll(argv[++i]);
    } else if (argument.rfind("--", 0) != 0 && options.model.empty()) {
      options.model = argument;
    } else {
      throw std::invalid_argument("unknown argument " + argument);
    }
  }
  if (options.model.empty()) throw std::invalid_argument("which model directory?");
  return options;
}

/*! \brief The most likely token of one row of (rows, vocabulary) logits. */
int32_t Argmax(const Tensor& logits, int64_t row) {
  const int64_t width = logits->shape[1];
  const char* data = static_cast<const char*>(logits->data) + logits->byte_offset;
  const float* begin = reinterpret_cast<const float*>(data) + row * width;
  return static_cast<int32_t>(std::max_element(begin, begin + width) - begin);
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
 * \brief One round: verifies drafts behind the last token, commits what the model agrees with.
 * \return the new tokens: the accepted drafts and the one that the model says instead of the rest.
 */
std::vector<int32_t> Round(kvctl::ModelRunner* runner, int32_t last,
                           const std::vector<int32_t>& drafts) {
  std::vector<int32_t> chain = {last};
  chain.insert(chain.end(), drafts.begin(), drafts.end());
  const Tensor logits = runner->Verify({kSequence}, {kvctl::TokenTree::Chain(chain)});
  std::vector<int32_t> kept;
  std::vector<int32_t> emitted;
  for (int32_t row = 0; row < static_cast<int32_t>(chain.size()); ++row) {
    kept.push_back(row);
    emitted.push_back(Argmax(logits, row));
    const bool agreed = row < static_cast<int32_t>(drafts.size()) && drafts[row] == emitted.back();
    if (!agreed) break;
  }
  runner->cache()->Commit({kSequence}, {kept});
  return emitted;
}

void Run(const Options& options) {
  std::vector<int32_t> tokens;
  for (int32_t token; std::cin >> token;) tokens.push_back(token);

  kvctl::Init();
  kvctl::ModelRunner runner = kvctl::ModelRunner::Load(options.model);
  runner.cache()->AddSequence(kSequence);
  const size_t prompt_length = tokens.size();
  tokens.push_back(Argmax(runner.Prefill({kSequence}, {tokens}), 0));

  const auto begin = std::chrono::steady_clock::now();
  const auto wanted = prompt_length + static_cast<size_t>(std::max<int64_t>(options.max_tokens, 1));
  int64_t forwards = 0;
  while (tokens.size() < wanted) {
    const int64_t room = static_cast<int64_t>(wanted - tokens.size()) - 1;
    const auto drafts = Lookup(tokens, std::min(options.draft, room));
    const auto emitted = Round(&runner, tokens.back(), drafts);
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
