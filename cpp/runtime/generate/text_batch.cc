#include "runtime/generate/text_batch.h"

#include <algorithm>
#include <exception>

#include "kvctl/error.h"
#include "runtime/generate/free_tokens.h"
#include "runtime/support/runner_sequence.h"

namespace kvctl {
namespace {

// Tokens that must stay free for each text that runs when another one enters: otherwise it would
// have to leave soon.
constexpr int64_t kHeadroom = 32;

}  // namespace

TextBatch::TextBatch(ModelRunner* runner, Rounds* rounds, Drafting* drafting,
                     std::vector<TextState>* texts, int64_t window, int64_t most)
    : runner_(runner),
      rounds_(rounds),
      drafting_(drafting),
      texts_(texts),
      window_(window),
      most_(static_cast<size_t>(most)) {
  for (TextState& text : *texts) waiting_.push_back(&text);
}

void TextBatch::Run() {
  try {
    RunRounds();
  } catch (...) {
    RemoveAll();
    throw;
  }
}

void TextBatch::RunRounds() {
  while (!waiting_.empty() || !running_.empty()) {
    Enter();
    LeaveEnded();
    if (running_.empty()) continue;
    rounds_->Run(std::vector<TextState*>(running_), [this](TextState* text) {
      Leave(text);
      waiting_.push_front(text);
    });
    LeaveEnded();
  }
}

void TextBatch::Enter() {
  std::vector<TextState*> entering;
  int64_t promised = 0;  // tokens of texts that entered, but were not forwarded yet
  while (!waiting_.empty() && running_.size() + entering.size() < most_) {
    const TextState& text = *waiting_.front();
    const auto others = static_cast<int64_t>(running_.size() + entering.size());
    auto length = static_cast<int64_t>(text.request.tokens.size());
    if (window_ > 0) length = std::min(length, window_);
    const int64_t free = FreeTokens(*runner_) - promised;
    const bool alone = others == 0;
    if (!alone && length + kHeadroom * (others + 1) > free) break;
    if (!Add(text, alone)) break;
    entering.push_back(waiting_.front());
    waiting_.pop_front();
    promised += length;
  }
  while (!entering.empty() && !Forward(&entering)) {
    TextState* last = entering.back();
    if (entering.size() + running_.size() == 1) {
      Throw(ErrorKind::kOutOfPages, "the ", last->request.tokens.size(), " tokens of text ",
            last->request.id, " do not fit into the ", FreeTokens(*runner_),
            " tokens of the cache's free pages, though no other text runs");
    }
    runner_->RemoveSequence(last->request.seq_id);
    entering.pop_back();
    waiting_.push_front(last);
  }
}

bool TextBatch::Add(const TextState& text, bool alone) {
  try {
    runner_->AddSequence(text.request.seq_id);
  } catch (const std::exception& caught) {
    if (alone || !IsFull(caught)) throw;
    return false;
  }
  return true;
}

bool TextBatch::Forward(std::vector<TextState*>* entering) {
  while (!entering->empty()) {
    const auto first_begun = std::find_if(entering->begin(), entering->end(),
                                          [](const TextState* text) { return text->begun(); });
    // New prompts run together, a text that comes back by itself.
    const auto end = first_begun == entering->begin() ? first_begun + 1 : first_begun;
    const bool fits = first_begun == entering->begin() ? rounds_->Replay(entering->front())
                                                       : rounds_->Prefill({entering->begin(), end});
    if (!fits) return false;
    running_.insert(running_.end(), entering->begin(), end);
    entering->erase(entering->begin(), end);
  }
  return true;
}

void TextBatch::Leave(TextState* text) {
  running_.erase(std::find(running_.begin(), running_.end(), text));
  drafting_->Finish(text);
  runner_->RemoveSequence(text->request.seq_id);
}

void TextBatch::LeaveEnded() {
  for (TextState* text : std::vector<TextState*>(running_)) {
    if (text->ended()) Leave(text);
  }
}

void TextBatch::RemoveAll() noexcept {
  for (TextState& text : *texts_) {
    try {
      drafting_->Finish(&text);
    } catch (...) {  // the first exception is on its way already
    }
    try {
      const int64_t id = text.request.seq_id;
      if (HasSequence(*runner_, id)) runner_->RemoveSequence(id);
    } catch (...) {  // another thread uses the cache
    }
  }
}

}  // namespace kvctl
