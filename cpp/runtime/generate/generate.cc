#include "kvctl/generate.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "kvctl/error.h"
#include "runtime/generate/free_tokens.h"
#include "runtime/generate/text_batch.h"
#include "runtime/support/json.h"
#include "runtime/support/runner_sequence.h"

namespace kvctl {
namespace {

/*! \brief A size that the library's metadata names; 0 where there is none. */
int64_t SizeOf(const ModelRunner& runner, const char* key) {
  const auto size = FindMember<int64_t>(runner.functions().metadata(), key);
  return std::max<int64_t>(size.value_or(0), 0);
}

template <typename T>
void CheckOneForEach(const std::vector<T>& values, size_t count, const char* name) {
  if (values.size() != 1 && values.size() != count) {
    Throw(ErrorKind::kValue, name, " must have one entry, or one for each of the ", count,
          " prompts, got ", values.size());
  }
}

template <typename T>
const T& EntryOf(const std::vector<T>& values, size_t i) {
  return values[values.size() == 1 ? 0 : i];
}

void CheckOptions(const ModelRunner& runner, const GenerateOptions& options, size_t count) {
  if (options.rule) {
    const auto rule = static_cast<int>(*options.rule);
    if (rule >= kNumRules) {
      Throw(ErrorKind::kValue, "rule must be one of the ", kNumRules, " of kvctl::Rule, got ",
            rule);
    }
  }
  if (!options.sampling.empty()) CheckOneForEach(options.sampling, count, "sampling");
  CheckOneForEach(options.seed, count, "seed");
  CheckOneForEach(options.request_id, count, "request_id");
  CheckOneForEach(options.max_new_tokens, count, "max_new_tokens");
  if (options.max_batch < 0) {
    Throw(ErrorKind::kValue, "max_batch must be at least 1, or 0 for no limit, got ",
          options.max_batch);
  }
  for (const Sampling& sampling : options.sampling) {
    sampling.Check(static_cast<int32_t>(runner.vocab_size()));
  }
  for (int64_t length : options.max_new_tokens) {
    if (length < 1) Throw(ErrorKind::kValue, "max_new_tokens must be at least 1, got ", length);
  }
}

void CheckPrompt(const ModelRunner& runner, const std::vector<int32_t>& prompt, size_t i) {
  if (prompt.empty()) Throw(ErrorKind::kValue, "prompt ", i, " must have at least one token");
  for (int32_t token : prompt) {
    if (token < 0 || token >= runner.vocab_size()) {
      Throw(ErrorKind::kValue, "prompt ", i, " has token ", token, "; the vocabulary is 0 to ",
            runner.vocab_size() - 1);
    }
  }
}

/*! \brief How many new tokens a text may have that has the cache's free pages for itself. */
Room RoomFor(const ModelRunner& runner, size_t i, int64_t prompt_length, int64_t max_new_tokens) {
  Room room = {max_new_tokens, FinishReason::kLength};
  if (SizeOf(runner, "sliding_window_size") > 0) return room;
  const int64_t context = SizeOf(runner, "context_window_size");
  const auto limit_to = [&](int64_t size, FinishReason reason, const char* where) {
    if (prompt_length > size) {
      Throw(ErrorKind::kValue, "prompt ", i, " has ", prompt_length, " tokens; there is room for ",
            size, " in the ", where);
    }
    // The last token of the text is never forwarded, so it needs no room.
    if (size - prompt_length + 1 < room.tokens) room = {size - prompt_length + 1, reason};
  };
  if (context > 0) limit_to(context, FinishReason::kContext, "model's context window");
  limit_to(FreeTokens(runner), FinishReason::kCache, "cache");
  return room;
}

/*! \brief A text's sampling with all its stop tokens, ascending; those outside the vocabulary are
 * never emitted. */
Sampling SamplingOf(const ModelRunner& runner, const GenerateOptions& options, size_t i) {
  Sampling sampling;
  sampling.temperature = 0;
  if (!options.sampling.empty()) sampling = EntryOf(options.sampling, i);
  std::set<int32_t> stops(sampling.stop_tokens.begin(), sampling.stop_tokens.end());
  stops.insert(options.stop_tokens.begin(), options.stop_tokens.end());
  sampling.stop_tokens.clear();
  for (int32_t token : stops) {
    if (token >= 0 && token < runner.vocab_size()) sampling.stop_tokens.push_back(token);
  }
  return sampling;
}

std::vector<TextState> MakeTexts(const ModelRunner& runner,
                                 const std::vector<std::vector<int32_t>>& prompts,
                                 const GenerateOptions& options) {
  std::vector<TextState> texts;
  texts.reserve(prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    CheckPrompt(runner, prompts[i], i);
    Request request;
    request.id = static_cast<int64_t>(i);
    request.tokens = prompts[i];
    request.prompt_length = static_cast<int64_t>(prompts[i].size());
    request.seq_id = options.first_seq_id + request.id;
    request.sampling = SamplingOf(runner, options, i);
    request.seed = EntryOf(options.seed, i);
    request.request_id =
        options.request_id.size() == 1 ? options.request_id[0] + i : options.request_id[i];
    if (HasSequence(runner, request.seq_id)) {
      Throw(ErrorKind::kValue, "sequence ", request.seq_id, " of text ", i,
            " exists already; first_seq_id must name sequences that do not, got ",
            options.first_seq_id);
    }
    const Room room = RoomFor(runner, i, request.prompt_length, EntryOf(options.max_new_tokens, i));
    texts.emplace_back(std::move(request), room, &options);
  }
  return texts;
}

}  // namespace

std::vector<Generation> Generate(ModelRunner* runner,
                                 const std::vector<std::vector<int32_t>>& prompts,
                                 const GenerateOptions& options) {
  if (runner == nullptr) Throw(ErrorKind::kValue, "the runner must not be null");
  if (prompts.empty()) return {};
  CheckOptions(*runner, options, prompts.size());
  std::vector<TextState> texts = MakeTexts(*runner, prompts, options);
  const int64_t window = SizeOf(*runner, "sliding_window_size");
  Drafting drafting(runner, options.drafter, window > 0);
  // Under other rules the text would depend on the times of rounds.
  const bool follows =
      !options.rule || *options.rule == Rule::kGreedy || *options.rule == Rule::kTargetOnly;
  Rounds rounds(runner, &drafting, Decider(options.rule, options.log_probs),
                options.adapt && follows);
  const auto count = static_cast<int64_t>(texts.size());
  const int64_t most = options.max_batch == 0 ? count : std::min(options.max_batch, count);
  TextBatch(runner, &rounds, &drafting, &texts, window, most).Run();
  std::vector<Generation> generations;
  for (TextState& text : texts) generations.push_back(text.TakeGeneration());
  return generations;
}

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStopToken:
      return "stop_token";
    case FinishReason::kStopWhen:
      return "stop_when";
    case FinishReason::kContext:
      return "context";
    case FinishReason::kCache:
      return "cache";
    case FinishReason::kLength:
      break;
  }
  return "length";
}

Statistics& Statistics::operator+=(const Statistics& other) {
  rounds += other.rounds;
  speculative_rounds += other.speculative_rounds;
  drafted += other.drafted;
  accepted += other.accepted;
  replayed_tokens += other.replayed_tokens;
  prefill_seconds += other.prefill_seconds;
  draft_seconds += other.draft_seconds;
  forward_seconds += other.forward_seconds;
  decode_seconds += other.decode_seconds;
  return *this;
}

}  // namespace kvctl
