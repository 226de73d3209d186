#include "runtime/generate/rounds.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "runtime/support/runner_sequence.h"

namespace kvctl {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

std::vector<int64_t> SequencesOf(const std::vector<TextState*>& texts) {
  std::vector<int64_t> ids;
  for (const TextState* text : texts) ids.push_back(text->request.seq_id);
  return ids;
}

}  // namespace

/*! \brief What a round's forward returns. */
struct Rounds::Forwarded {
  tvm::runtime::Tensor logits;
  bool pending;  //!< whether the rows wait for a commit
};

bool Rounds::Prefill(const std::vector<TextState*>& texts) {
  const Clock::time_point begin = Clock::now();
  std::vector<std::vector<int32_t>> prompts;
  std::vector<Share> shares;
  size_t total = 0;
  for (TextState* text : texts) {
    prompts.push_back(text->request.tokens);
    shares.push_back({text, Draft::Nothing(text->request.root())});
    total += prompts.back().size();
  }
  tvm::runtime::Tensor logits;
  try {
    logits = runner_->Prefill(SequencesOf(texts), prompts);
  } catch (const std::exception& caught) {
    if (IsOutOfPages(caught)) return false;
    throw;
  }
  std::vector<VerifiedSequence> decisions = decider_.Decide(shares, logits);
  const double seconds = Seconds(begin, Clock::now());
  for (size_t i = 0; i < texts.size(); ++i) {
    texts[i]->statistics.prefill_seconds +=
        seconds * static_cast<double>(prompts[i].size()) / static_cast<double>(total);
    texts[i]->Cut(&decisions[i].tokens);
    texts[i]->Take(decisions[i].tokens, decisions[i].log_probs);
  }
  for (TextState* text : texts) drafting_->Start(text);
  for (size_t i = 0; i < texts.size(); ++i) texts[i]->Tell(decisions[i].tokens);
  return true;
}

bool Rounds::Replay(TextState* text) {
  const std::vector<int32_t>& tokens = text->request.tokens;
  try {
    runner_->Prefill({text->request.seq_id}, {{tokens.begin(), tokens.end() - 1}});
  } catch (const std::exception& caught) {
    if (IsOutOfPages(caught)) return false;
    throw;
  }
  text->statistics.replayed_tokens += static_cast<int64_t>(tokens.size()) - 1;
  drafting_->Start(text);
  return true;
}

Rounds::Forwarded Rounds::Forward(const std::vector<Share>& shares) {
  std::vector<int64_t> ids;
  for (const Share& share : shares) ids.push_back(share.text->request.seq_id);
  if (std::any_of(shares.begin(), shares.end(), [](const Share& s) { return s.drafts(); })) {
    std::vector<TokenTree> trees;
    for (const Share& share : shares) trees.push_back(share.tree());
    return {runner_->Verify(ids, trees), true};
  }
  std::vector<int32_t> roots;
  for (const Share& share : shares) roots.push_back(share.text->request.root());
  return {runner_->Decode(ids, roots), false};
}

Rounds::Forwarded Rounds::ForwardWhatFits(std::vector<Share>* shares,
                                          const std::function<void(TextState*)>& leave) {
  while (true) {
    try {
      return Forward(*shares);
    } catch (const std::exception& caught) {
      if (!IsOutOfPages(caught)) throw;
      const auto drafts = [](const Share& share) { return share.drafts(); };
      if (std::any_of(shares->begin(), shares->end(), drafts)) {
        for (Share& share : *shares) share.dropped = share.proposed.tree.size() > 1;
      } else if (shares->size() > 1) {
        TextState* last = shares->back().text;
        shares->pop_back();
        leave(last);
      } else {
        throw;
      }
    }
  }
}

bool Rounds::Drafts(const std::vector<TextState*>& texts) {
  return !adapts_ || pays_.Worthwhile(static_cast<int64_t>(texts.size()));
}

void Rounds::Run(const std::vector<TextState*>& texts,
                 const std::function<void(TextState*)>& leave) {
  const Clock::time_point begin = Clock::now();
  std::vector<Share> shares =
      Drafts(texts) ? drafting_->Propose(texts) : Drafting::ProposeNothing(texts);
  const Clock::time_point drafted = Clock::now();
  const Forwarded rows = ForwardWhatFits(&shares, leave);
  const Clock::time_point forwarded = Clock::now();
  std::vector<VerifiedSequence> decisions = decider_.Decide(shares, rows.logits);

  std::vector<int64_t> ids;
  std::vector<std::vector<int32_t>> kept;
  for (size_t i = 0; i < shares.size(); ++i) {
    VerifiedSequence& decision = decisions[i];
    shares[i].text->Cut(&decision.tokens);
    const size_t path = std::min(decision.accepted_nodes.size(), decision.tokens.size());
    decision.accepted_nodes.resize(path);
    decision.kept.resize(1 + path);
    ids.push_back(shares[i].text->request.seq_id);
    kept.push_back(decision.kept);
  }
  if (rows.pending) runner_->Commit(ids, kept);

  const Clock::time_point committed = Clock::now();
  std::vector<RoundResult> results;
  for (size_t i = 0; i < shares.size(); ++i) {
    Share& share = shares[i];
    share.text->Take(decisions[i].tokens, decisions[i].log_probs);
    RoundResult result;
    result.request = &share.text->request;
    result.draft = &share.proposed;
    result.accepted = std::move(decisions[i].accepted_nodes);
    result.emitted = std::move(decisions[i].tokens);
    result.kept = std::move(decisions[i].kept);
    result.dropped = share.dropped;
    result.finished = share.text->ended();
    results.push_back(std::move(result));
  }
  drafting_->Observe(results);

  const auto size = static_cast<double>(shares.size());
  const double learnt = Seconds(committed, Clock::now());
  const double seconds = Seconds(begin, committed) + learnt;
  int64_t emitted = 0;
  for (const RoundResult& result : results) {
    emitted += static_cast<int64_t>(result.emitted.size());
  }
  pays_.Observe(static_cast<int64_t>(shares.size()), rows.pending, emitted, seconds);
  for (size_t i = 0; i < shares.size(); ++i) {
    Statistics& statistics = shares[i].text->statistics;
    ++statistics.rounds;
    if (shares[i].drafts()) {
      ++statistics.speculative_rounds;
      statistics.drafted += shares[i].proposed.tree.size() - 1;
      statistics.accepted += static_cast<int64_t>(results[i].accepted.size());
    }
    statistics.draft_seconds += (Seconds(begin, drafted) + learnt) / size;
    statistics.forward_seconds += Seconds(drafted, forwarded) / size;
    statistics.decode_seconds += seconds / size;
  }
  for (size_t i = 0; i < shares.size(); ++i) shares[i].text->Tell(results[i].emitted);
}

}  // namespace kvctl
