#include "runtime/generate/drafting.h"

#include <algorithm>
#include <utility>

#include "kvctl/error.h"
#include "runtime/generate/free_tokens.h"

namespace kvctl {
namespace {

/*! \brief Refuses a draft that the loop may not verify. */
void CheckDraft(const Draft& draft, const Request& request, int64_t vocab_size) {
  const std::vector<int32_t>& tokens = draft.tree.tokens();
  if (tokens[0] != request.root()) {
    Throw(ErrorKind::kValue, "the drafter returned a tree with root ", tokens[0], " for text ",
          request.id, "; the root is the last token of the text, ", request.root());
  }
  const int64_t nodes = draft.tree.size() - 1;
  if (nodes > request.limit) {
    Throw(ErrorKind::kValue, "the drafter returned ", nodes, " nodes behind the root for text ",
          request.id, "; its limit was ", request.limit);
  }
  const auto most = std::max_element(tokens.begin(), tokens.end());  // a tree has none below 0
  if (*most >= vocab_size) {
    Throw(ErrorKind::kValue, "the drafter drafted token ", *most, " for text ", request.id,
          "; the vocabulary is 0 to ", vocab_size - 1);
  }
  if (draft.drawn.size() != 1 && draft.drawn.size() != tokens.size()) {
    Throw(ErrorKind::kValue, "the drafter said of ", draft.drawn.size(), " nodes how they were ",
          "drawn, for text ", request.id, "; it must be 1 for all, or ", tokens.size(),
          ", the root among them");
  }
  const int64_t numbers = draft.tree.num_rows() * vocab_size;
  if (!draft.probs.empty() && static_cast<int64_t>(draft.probs.size()) != numbers) {
    Throw(ErrorKind::kValue, "the drafter returned ", draft.probs.size(), " probabilities for ",
          "text ", request.id, "; its tree has ", draft.tree.num_rows(), " rows of ", vocab_size);
  }
}

}  // namespace

void Drafting::Start(TextState* text) {
  if (drafter_ == nullptr || text->ended()) return;
  text->started = true;
  drafter_->Start(text->request);
}

void Drafting::Finish(TextState* text) {
  if (!std::exchange(text->started, false)) return;
  drafter_->Finish(text->request);
}

std::vector<Share> Drafting::ProposeNothing(const std::vector<TextState*>& texts) {
  std::vector<Share> shares;
  shares.reserve(texts.size());
  for (TextState* text : texts) shares.push_back({text, Draft::Nothing(text->request.root())});
  return shares;
}

std::vector<Share> Drafting::Propose(const std::vector<TextState*>& texts) {
  if (drafter_ == nullptr) return ProposeNothing(texts);
  std::vector<Share> shares;
  shares.reserve(texts.size());
  SetLimits(texts);
  std::vector<const Request*> requests;
  for (const TextState* text : texts) requests.push_back(&text->request);
  std::vector<Draft> drafts = drafter_->Propose(requests);
  if (drafts.size() != requests.size()) {
    Throw(ErrorKind::kValue, "the drafter returned ", drafts.size(), " drafts for ",
          requests.size(), " requests");
  }
  for (size_t i = 0; i < drafts.size(); ++i) {
    CheckDraft(drafts[i], *requests[i], runner_->vocab_size());
    shares.push_back({texts[i], std::move(drafts[i])});
  }
  return shares;
}

void Drafting::Observe(const std::vector<RoundResult>& results) {
  if (drafter_ != nullptr) drafter_->Observe(results);
}

void Drafting::SetLimits(const std::vector<TextState*>& texts) const {
  const auto size = static_cast<int64_t>(texts.size());
  int64_t most = runner_->prefill_chunk_size() - 1;
  if (slides_) {
    // Pending rows evict no page; a plain step does, and the next round has room again.
    most = std::min(most, FreeTokens(*runner_) / size - 1);
  } else if (size > 1) {
    // A text may need a page of its own for a single row.
    most = std::min(most, FreeTokens(*runner_) / size);
  }
  for (TextState* text : texts) {
    text->request.limit = std::max<int64_t>(0, std::min(text->room() - 1, most));
  }
}

}  // namespace kvctl
