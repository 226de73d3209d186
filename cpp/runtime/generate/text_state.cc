#include "runtime/generate/text_state.h"

#include <algorithm>
#include <utility>

namespace kvctl {

TextState::TextState(Request text, const Room& room, const GenerateOptions* options)
    : request(std::move(text)), room_(room), options_(options) {}

void TextState::Cut(std::vector<int32_t>* emitted) {
  const std::vector<int32_t>& stops = request.sampling.stop_tokens;
  for (size_t i = 0; i < emitted->size(); ++i) {
    const int32_t token = (*emitted)[i];
    const bool asked = options_->stop_when && options_->stop_when(request.id, token);
    const bool stops_here = std::binary_search(stops.begin(), stops.end(), token);
    if (!asked && !stops_here) continue;
    finished_ = stops_here ? FinishReason::kStopToken : FinishReason::kStopWhen;
    emitted->resize(i + 1);
    return;
  }
}

void TextState::Take(const std::vector<int32_t>& emitted, const std::vector<double>& log_probs) {
  request.tokens.insert(request.tokens.end(), emitted.begin(), emitted.end());
  const size_t count = std::min(emitted.size(), log_probs.size());
  log_probs_.insert(log_probs_.end(), log_probs.begin(), log_probs.begin() + count);
  room_.tokens -= static_cast<int64_t>(emitted.size());
  if (!finished_ && room_.tokens == 0) finished_ = room_.limit;
}

void TextState::Tell(const std::vector<int32_t>& emitted) const {
  if (options_->on_tokens) options_->on_tokens(request.id, emitted);
}

Generation TextState::TakeGeneration() {
  Generation generation;
  generation.tokens.assign(request.tokens.begin() + request.prompt_length, request.tokens.end());
  generation.finish_reason = finished_.value_or(room_.limit);
  generation.log_probs = std::move(log_probs_);
  generation.statistics = statistics;
  return generation;
}

}  // namespace kvctl
