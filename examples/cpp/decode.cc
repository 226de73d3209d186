// Decoding of a compiled model, plain or speculative, greedy or sampled, in C++ alone.
//
//   decode MODEL_DIR [--drafter none|lookup|suffix|model DIR] [--draft N] [--max-tokens N]
//          [--temperature T] [--seed S] [--rule NAME] [--always] < prompts
//
// Each line of standard input is a prompt, a list of token ids; each line of standard output has
// the new ids of one. All prompts are decoded together. A drafter changes no token, neither at
// temperature 0 nor with a seed, unless a rule is named: others, such as block, keep the text's
// distribution. With --always every round drafts, whether that pays or not.
#include <kvctl/generate.h>

#include <cstdint>
#include <exception>
#include <iostream>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace {

struct Options {
  std::string model;
  std::string drafter = "lookup";
  std::string draft_model;
  int64_t draft = 7;
  int64_t max_tokens = 64;
  bool always = false;
  double temperature = 0;
  uint64_t seed = 0;
  std::optional<kvctl::Rule> rule;
};

kvctl::Rule RuleOf(const std::string& name) {
  for (int i = 0; i < kvctl::kNumRules; ++i) {
    if (name == kvctl::RuleName(static_cast<kvctl::Rule>(i))) return static_cast<kvctl::Rule>(i);
  }
  throw std::invalid_argument("there is no rule " + name);
}

template <typename T>
T NumberOf(const std::string& name, const std::string& text) {
  std::istringstream words(text);
  T number;
  // A stream reads a negative number as an unsigned one, modulo 2^64.
  const bool fits = std::is_signed_v<T> || text.find('-') == std::string::npos;
  if (fits && words >> number && words.eof()) return number;
  throw std::invalid_argument(name + " needs a number" + (std::is_signed_v<T> ? "" : " from 0 on") +
                              ", got " + text);
}

Options Parse(int argc, char** argv) {
  Options options;
  int at = 1;
  const auto next = [&]() -> std::string {
    if (at == argc) throw std::invalid_argument(std::string(argv[at - 1]) + " needs a value");
    return argv[at++];
  };
  while (at < argc) {
    const std::string name = argv[at++];
    if (name == "--drafter") {
      options.drafter = next();
      if (options.drafter == "model") options.draft_model = next();
    } else if (name == "--draft") {
      options.draft = NumberOf<int64_t>(name, next());
    } else if (name == "--always") {
      options.always = true;
    } else if (name == "--max-tokens") {
      options.max_tokens = NumberOf<int64_t>(name, next());
    } else if (name == "--temperature") {
      options.temperature = NumberOf<double>(name, next());
    } else if (name == "--seed") {
      options.seed = NumberOf<uint64_t>(name, next());
    } else if (name == "--rule") {
      options.rule = RuleOf(next());
    } else if (name.rfind("--", 0) != 0 && options.model.empty()) {
      options.model = name;
    } else {
      throw std::invalid_argument("unknown argument " + name);
    }
  }
  if (options.model.empty()) throw std::invalid_argument("which model directory?");
  return options;
}

std::vector<std::vector<int32_t>> ReadPrompts() {
  std::vector<std::vector<int32_t>> prompts;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    prompts.emplace_back();
    for (std::string word; words >> word;) {
      std::istringstream number(word);
      int32_t token;
      if (!(number >> token && number.eof())) {
        throw std::invalid_argument("a prompt is a line of token ids, got " + line);
      }
      prompts.back().push_back(token);
    }
  }
  return prompts;
}

/*! \brief The drafter that was asked for; a model that drafts is loaded where `model` says. */
std::unique_ptr<kvctl::Drafter> MakeDrafter(const Options& options,
                                            std::optional<kvctl::ModelRunner>* model) {
  const kvctl::CopyOptions copy = {options.draft, options.draft};
  if (options.drafter == "none") return nullptr;
  if (options.drafter == "lookup") return std::make_unique<kvctl::LookupDrafter>(copy);
  if (options.drafter == "suffix") {
    return std::make_unique<kvctl::SuffixDrafter>(kvctl::SuffixDrafter::Options{copy});
  }
  if (options.drafter != "model") throw std::invalid_argument("no drafter " + options.drafter);
  *model = kvctl::ModelRunner::Load(options.draft_model);
  kvctl::ModelDrafter::Options how;
  how.length = options.draft;
  if (options.rule) how.how = kvctl::Drawn::kIndependent;  // what most rules need
  if (options.rule == kvctl::Rule::kCoupled) how.how = kvctl::Drawn::kCoupled;
  return std::make_unique<kvctl::ModelDrafter>(&**model, how);
}

void Run(const Options& options) {
  kvctl::Init();
  kvctl::ModelRunner runner = kvctl::ModelRunner::Load(options.model);
  std::optional<kvctl::ModelRunner> draft_model;
  const std::unique_ptr<kvctl::Drafter> drafter = MakeDrafter(options, &draft_model);

  kvctl::GenerateOptions asked;
  asked.drafter = drafter.get();
  asked.rule = options.rule;
  asked.adapt = !options.always;
  asked.max_new_tokens = {options.max_tokens};
  asked.seed = {options.seed};
  asked.sampling.resize(1);
  asked.sampling[0].temperature = options.temperature;
  const std::vector<kvctl::Generation> texts = kvctl::Generate(&runner, ReadPrompts(), asked);

  kvctl::Statistics total;
  double decoded = 0;
  for (const kvctl::Generation& text : texts) {
    for (size_t i = 0; i < text.tokens.size(); ++i) std::cout << (i ? " " : "") << text.tokens[i];
    std::cout << "\n";
    total += text.statistics;
    decoded += static_cast<double>(text.tokens.size() - 1);
  }
  std::cerr << decoded << " tokens after the first in " << total.rounds << " rounds, "
            << total.accepted << " of " << total.drafted << " drafts accepted, "
            << (decoded > 0 ? decoded / total.decode_seconds : 0) << " tokens/s\n";
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
