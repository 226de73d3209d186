#include "runtime/draft/draft_sequences.h"

#include <algorithm>
#include <exception>

#include "kvctl/mask.h"
#include "runtime/support/json.h"
#include "runtime/support/runner_sequence.h"

namespace kvctl {
namespace {

using tvm::runtime::Tensor;

int64_t SizeOf(const Request& request) { return static_cast<int64_t>(request.tokens.size()); }

int64_t ContextWindow(const ModelRunner& runner) {
  const auto size = FindMember<int64_t>(runner.functions().metadata(), "context_window_size");
  return size && *size > 0 ? *size : std::numeric_limits<int64_t>::max();
}

}  // namespace

ModelDrafter::Sequences::Sequences(ModelRunner* runner)
    : runner_(runner), context_window_(ContextWindow(*runner)) {}

ModelDrafter::Sequences::~Sequences() {
  for (const auto& entry : sequences_) {
    try {
      if (HasSequence(*runner_, entry.second.id)) runner_->RemoveSequence(entry.second.id);
    } catch (...) {  // another thread uses the cache
    }
  }
}

Tensor ModelDrafter::Sequences::CatchUp(std::vector<const Request*>* texts) {
  const auto no_room = [this](const Request* text) { return !Enter(*text); };
  texts->erase(std::remove_if(texts->begin(), texts->end(), no_room), texts->end());
  while (!texts->empty()) {
    std::vector<int64_t> ids;
    std::vector<std::vector<int32_t>> lacking;
    for (const Request* text : *texts) {
      Sequence& sequence = sequences_.at(text->id);
      // The root came with a round that the text then was left out of.
      if (const int64_t beyond = sequence.length - (SizeOf(*text) - 1); beyond > 0) {
        runner_->PopN(sequence.id, beyond);
        sequence.length -= beyond;
      }
      ids.push_back(sequence.id);
      lacking.emplace_back(text->tokens.begin() + sequence.length, text->tokens.end());
    }
    try {
      Tensor logits = runner_->Prefill(ids, lacking);
      for (const Request* text : *texts) sequences_.at(text->id).length = SizeOf(*text);
      return logits;
    } catch (const std::exception& caught) {
      if (!IsOutOfPages(caught)) throw;
      Leave(*texts->back());
      texts->pop_back();
    }
  }
  return Tensor();
}

Tensor ModelDrafter::Sequences::Grow(const std::vector<const Request*>& texts,
                                     const std::vector<int32_t>& tokens) {
  std::vector<StepRequest> requests;
  for (const Request* text : texts) {
    const Sequence& sequence = sequences_.at(text->id);
    StepRequest& request = requests.emplace_back();
    request.seq_id = sequence.id;
    request.append_length = 1;
    request.mask = Mask::Tree({sequence.pending - 1});
  }
  try {
    Tensor logits = runner_->Forward(requests, tokens);
    for (const Request* text : texts) ++sequences_.at(text->id).pending;
    return logits;
  } catch (const std::exception& caught) {
    if (!IsOutOfPages(caught)) throw;
    return Tensor();
  }
}

void ModelDrafter::Sequences::Keep(const std::vector<RoundResult>& results) {
  std::vector<Sequence*> sequences;
  std::vector<int64_t> ids;
  std::vector<std::vector<int32_t>> kept;
  for (const RoundResult& result : results) {
    const auto found = sequences_.find(result.request->id);
    if (found == sequences_.end() || found->second.pending == 0) continue;
    sequences.push_back(&found->second);
    ids.push_back(found->second.id);
    const auto accepted = static_cast<int32_t>(result.accepted.size());
    std::vector<int32_t>& rows = kept.emplace_back();
    for (int32_t row = 0; row < std::min(accepted, found->second.pending); ++row) {
      rows.push_back(row);
    }
  }
  if (ids.empty()) return;
  runner_->Commit(ids, kept);
  for (size_t i = 0; i < ids.size(); ++i) {
    sequences[i]->pending = 0;
    sequences[i]->length += static_cast<int64_t>(kept[i].size());
  }
}

void ModelDrafter::Sequences::DropPending(const std::vector<const Request*>& texts) {
  for (const Request* text : texts) {
    const auto found = sequences_.find(text->id);
    if (found == sequences_.end() || found->second.pending == 0) continue;
    runner_->DropPending({found->second.id});
    found->second.pending = 0;
  }
}

void ModelDrafter::Sequences::Finish(const Request& request) {
  const auto found = sequences_.find(request.id);
  crowded_.clear();
  if (found == sequences_.end()) return;
  const int64_t id = found->second.id;
  sequences_.erase(found);
  if (HasSequence(*runner_, id)) runner_->RemoveSequence(id);
}

int64_t ModelDrafter::Sequences::DepthRoom(const Request& request) const {
  return context_window_ - SizeOf(request);
}

std::optional<int64_t> ModelDrafter::Sequences::IdOf(const Request& request) const {
  const auto found = sequences_.find(request.id);
  if (found == sequences_.end()) return std::nullopt;
  return found->second.id;
}

int64_t ModelDrafter::Sequences::LengthOf(const Request& request) const {
  const auto found = sequences_.find(request.id);
  return found == sequences_.end() ? 0 : found->second.length + found->second.pending;
}

/*! \brief Whether a text has a sequence, and its context has room for the root. */
bool ModelDrafter::Sequences::Enter(const Request& request) {
  if (SizeOf(request) > context_window_ || crowded_.count(request.id) > 0) return false;
  if (sequences_.count(request.id) > 0) return true;
  int64_t id = 0;
  while (HasSequence(*runner_, id)) ++id;
  sequences_.emplace(request.id, Sequence{id});
  try {
    runner_->AddSequence(id);
  } catch (const std::exception& caught) {
    sequences_.erase(request.id);
    if (!IsFull(caught)) throw;
    crowded_.insert(request.id);
    return false;
  }
  return true;
}

void ModelDrafter::Sequences::Leave(const Request& request) {
  crowded_.insert(request.id);
  runner_->RemoveSequence(sequences_.at(request.id).id);
  sequences_.erase(request.id);
}

}  // namespace kvctl
