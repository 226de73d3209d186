#include "runtime/generate/decider.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "runtime/support/host_rows.h"

namespace kvctl {
namespace {

/*! \brief Whether a rule follows the target alone, and asks neither how a draft was drawn nor from
 * what. */
bool FollowsTarget(Rule rule) { return rule == Rule::kGreedy || rule == Rule::kTargetOnly; }

bool HasProbs(const Share& share) { return share.drafts() && !share.proposed.probs.empty(); }

/*! \brief How each node of a share's tree was drawn. */
void AppendDrawn(const Share& share, std::vector<Drawn>* all) {
  if (!share.drafts()) {
    all->push_back(Drawn::kDeterministic);
    return;
  }
  const std::vector<Drawn>& drawn = share.proposed.drawn;
  if (drawn.size() == 1) {
    all->insert(all->end(), share.proposed.tree.size(), drawn[0]);
  } else {
    all->insert(all->end(), drawn.begin(), drawn.end());
  }
}

}  // namespace

Rule Decider::RuleFor(const Share* begin, const Share* end) const {
  if (rule_) return *rule_;
  const bool greedy = std::all_of(
      begin, end, [](const Share& share) { return share.text->request.sampling.temperature == 0; });
  return greedy ? Rule::kGreedy : Rule::kTargetOnly;
}

bool Decider::ReadsProbs() const {
  return rule_ && !FollowsTarget(*rule_) && *rule_ != Rule::kCoupled && *rule_ != Rule::kTypical;
}

std::vector<VerifiedSequence> Decider::DecideRun(const Share* begin, const Share* end,
                                                 const float* logits, int64_t vocab_size) const {
  VerifyBatch batch;
  batch.rule = RuleFor(begin, end);
  batch.logits = logits;
  batch.vocab_size = vocab_size;
  batch.log_probs = log_probs_;
  batch.seed = begin->text->request.seed;
  const bool follows = FollowsTarget(batch.rule);
  const bool with_probs = ReadsProbs() && HasProbs(*begin);
  std::vector<float> probs;
  if (!follows) batch.drawn.clear();
  bool penalizes = false;
  for (const Share* share = begin; share != end; ++share) {
    const Request& request = share->text->request;
    batch.trees.push_back(share->tree());
    batch.num_rows += share->num_rows();
    if (!follows) AppendDrawn(*share, &batch.drawn);
    if (with_probs) {
      probs.insert(probs.end(), share->proposed.probs.begin(), share->proposed.probs.end());
    }
    batch.sampling.push_back(request.sampling);
    batch.request_ids.push_back(request.request_id);
    batch.root_positions.push_back(request.root_position());
    penalizes |= request.sampling.penalizes();
  }
  if (with_probs) batch.draft_probs.probs = probs.data();
  for (const Share* share = begin; penalizes && share != end; ++share) {
    const std::vector<int32_t>& tokens = share->text->request.tokens;
    batch.history.emplace_back();
    if (!share->text->request.sampling.penalizes()) continue;
    batch.history.back().assign(tokens.begin(), tokens.end() - 1);
  }
  return Verify(batch);
}

std::vector<VerifiedSequence> Decider::Decide(const std::vector<Share>& shares,
                                              const tvm::runtime::Tensor& logits) const {
  const HostRows rows(logits);
  std::vector<VerifiedSequence> decisions;
  const float* next = rows.data();
  for (auto begin = shares.begin(); begin != shares.end();) {
    // Neighbours share a call if one seed and one form of distributions suit them.
    int64_t count = 0;
    auto end = begin;
    for (; end != shares.end(); ++end) {
      const bool same = end->text->request.seed == begin->text->request.seed;
      if (!same || (ReadsProbs() && HasProbs(*end) != HasProbs(*begin))) break;
      count += end->num_rows();
    }
    auto some = DecideRun(&*begin, &*begin + (end - begin), next, rows.width());
    std::move(some.begin(), some.end(), std::back_inserter(decisions));
    next += count * rows.width();
    begin = end;
  }
  return decisions;
}

}  // namespace kvctl
