// Generates texts in C++ as a test in Python asks for them.
//
//   generate_texts MODEL [name=value ...] < texts
//
// Each line of the texts: seed, request id, most new tokens, temperature, top_k, repetition
// penalty, then the tokens of the prompt. Each line of the output: why the text ended, the tokens
// that were replayed, the accepted drafts, then the new tokens, and with log_probs=1 as many
// hexadecimal log-probabilities.
#include <kvctl/generate.h>

#include <cstdlib>
#include <exception>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using kvctl::Drawn;
using kvctl::Rule;

/*! \brief The arguments "name=value". */
class Arguments {
 public:
  Arguments(int argc, char** argv) {
    for (int i = 2; i < argc; ++i) {
      const std::string argument = argv[i];
      const size_t at = argument.find('=');
      values_[argument.substr(0, at)] = argument.substr(at + 1);
    }
  }
  std::string Get(const std::string& name, const std::string& otherwise = "") const {
    const auto found = values_.find(name);
    return found == values_.end() ? otherwise : found->second;
  }
  int64_t Number(const std::string& name, int64_t otherwise) const {
    const std::string value = Get(name);
    return value.empty() ? otherwise : std::atoll(value.c_str());
  }
  bool Has(const std::string& name) const { return values_.count(name) > 0; }

 private:
  std::map<std::string, std::string> values_;
};

Rule RuleNamed(const std::string& name) {
  for (int i = 0; i < kvctl::kNumRules; ++i) {
    if (name == kvctl::RuleName(static_cast<Rule>(i))) return static_cast<Rule>(i);
  }
  throw std::invalid_argument("no rule " + name);
}

Drawn DrawnNamed(const std::string& name) {
  for (int i = 0; i < kvctl::kNumDrawn; ++i) {
    if (name == kvctl::DrawnName(static_cast<Drawn>(i))) return static_cast<Drawn>(i);
  }
  throw std::invalid_argument("no kind of drawing " + name);
}

/*! \brief Says that another drafter's tokens were drawn uniformly. */
class LyingDrafter : public kvctl::Drafter {
 public:
  explicit LyingDrafter(kvctl::Drafter* honest) : honest_(honest) {}
  void Start(const kvctl::Request& request) override { honest_->Start(request); }
  std::vector<kvctl::Draft> Propose(const std::vector<const kvctl::Request*>& requests) override {
    std::vector<kvctl::Draft> drafts = honest_->Propose(requests);
    for (kvctl::Draft& draft : drafts) {
      const float share = static_cast<float>(draft.tree.num_rows()) / draft.probs.size();
      draft.probs.assign(draft.probs.size(), share);
    }
    return drafts;
  }
  void Observe(const std::vector<kvctl::RoundResult>& results) override {
    honest_->Observe(results);
  }
  void Finish(const kvctl::Request& request) override { honest_->Finish(request); }

 private:
  kvctl::Drafter* honest_;
};

std::vector<std::vector<int32_t>> ReadTexts(kvctl::GenerateOptions* options) {
  std::vector<std::vector<int32_t>> prompts;
  options->seed.clear();
  options->request_id.clear();
  options->max_new_tokens.clear();
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    uint64_t seed, request_id;
    int64_t most;
    kvctl::Sampling sampling;
    words >> seed >> request_id >> most >> sampling.temperature >> sampling.top_k >>
        sampling.repetition_penalty;
    options->seed.push_back(seed);
    options->request_id.push_back(request_id);
    options->max_new_tokens.push_back(most);
    options->sampling.push_back(sampling);
    prompts.emplace_back();
    for (int32_t token; words >> token;) prompts.back().push_back(token);
  }
  return prompts;
}

kvctl::RunnerOptions RunnerOptionsOf(const Arguments& arguments) {
  kvctl::RunnerOptions options;
  options.max_sequences = arguments.Number("max_sequences", 4);
  options.max_total_tokens = arguments.Number("max_total_tokens", 0);
  options.prefill_chunk_size = arguments.Number("prefill_chunk_size", 0);
  options.page_size = arguments.Number("page_size", 16);
  return options;
}

void Run(int argc, char** argv) {
  const Arguments arguments(argc, argv);
  kvctl::Init();
  kvctl::ModelRunner runner = kvctl::ModelRunner::Load(argv[1], RunnerOptionsOf(arguments));
  kvctl::GenerateOptions options;
  const std::vector<std::vector<int32_t>> prompts = ReadTexts(&options);
  if (arguments.Has("rule")) options.rule = RuleNamed(arguments.Get("rule"));
  if (arguments.Has("stop")) {
    options.stop_tokens = {static_cast<int32_t>(arguments.Number("stop", 0))};
  }
  options.max_batch = arguments.Number("max_batch", 0);
  options.log_probs = arguments.Has("log_probs");
  options.adapt = arguments.Has("adapt");
  const int64_t length = arguments.Number("length", 4);

  const std::string name = arguments.Get("drafter");
  std::optional<kvctl::ModelRunner> draft_model;
  std::unique_ptr<kvctl::Drafter> drafter, liar;
  if (name == "lookup") {
    drafter.reset(new kvctl::LookupDrafter({length, length}, arguments.Has("branches")));
  } else if (name == "suffix") {
    kvctl::SuffixDrafter::Options suffix;
    suffix.copy = {length, length};
    suffix.branches = arguments.Has("branches");
    drafter.reset(new kvctl::SuffixDrafter(suffix));
  } else if (name == "model") {
    kvctl::RunnerOptions small = RunnerOptionsOf(arguments);
    small.max_total_tokens = arguments.Number("draft_tokens", 0);
    small.max_sequences = arguments.Number("draft_sequences", small.max_sequences);
    draft_model = kvctl::ModelRunner::Load(arguments.Get("draft_model"), small);
    kvctl::ModelDrafter::Options model;
    model.length = length;
    model.how = DrawnNamed(arguments.Get("how", "deterministic"));
    drafter.reset(new kvctl::ModelDrafter(&*draft_model, model));
  }
  options.drafter = drafter.get();
  if (arguments.Has("lie")) {
    liar.reset(new LyingDrafter(drafter.get()));
    options.drafter = liar.get();
  }

  kvctl::Statistics total;
  for (int64_t repeat = arguments.Number("repeats", 1); repeat > 0; --repeat) {
    for (const kvctl::Generation& text : kvctl::Generate(&runner, prompts, options)) {
      total += text.statistics;
      std::cout << kvctl::FinishReasonName(text.finish_reason) << " "
                << text.statistics.replayed_tokens << " " << text.statistics.accepted;
      for (int32_t token : text.tokens) std::cout << " " << token;
      std::cout << std::hexfloat;
      for (double value : text.log_probs) std::cout << " " << value;
      std::cout << std::defaultfloat << "\n";
    }
  }
  std::cerr << total.rounds << " " << total.drafted << " " << total.accepted << " "
            << total.draft_seconds << " " << total.forward_seconds << " " << total.decode_seconds
            << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 2) throw std::invalid_argument("which model directory?");
    Run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "generate_texts: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
