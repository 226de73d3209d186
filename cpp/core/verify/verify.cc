#include "core/verify/verify.h"

#include <algorithm>

#include "kvctl/error.h"

namespace kvctl {
namespace {

void VerifyOne(Rule rule, TreeVerifier* verifier, VerifyItem* item) {
  CheckRule(rule, item->input);
  verifier->Start(item->input);
  const RoundRandom random(item->stream, item->root_position, item->noise);
  WriteOutcome(RunRule(rule, *verifier, random), item);
  if (item->log_probs == nullptr) return;
  for (int32_t i = 0; i < item->num_tokens; ++i) {
    const int32_t after = i == 0 ? 0 : item->nodes[i - 1];
    item->log_probs[i] = verifier->Target(after).LogProb(item->tokens[i]);
  }
}

// Nanoseconds that a rule takes for each logit of a sequence, counting the rows that it never
// reads. Measured on AVX2. The estimate only decides how many threads start.
double CostPerLogit(Rule rule, Noise noise) {
  switch (rule) {
    case Rule::kGreedy:
      return 0.2;
    case Rule::kTargetOnly:
    case Rule::kCoupled:
      return noise == Noise::kGumbel ? 1 : 0.2;
    case Rule::kTokenWise:
    case Rule::kRecursive:
      return 0.7;
    default:
      return 1.2;
  }
}

double Cost(Rule rule, int32_t vocab_size, const std::vector<VerifyItem>& items) {
  double nanoseconds = 0;
  for (const VerifyItem& item : items) {
    nanoseconds += CostPerLogit(rule, item.noise) * vocab_size * item.input.size;
  }
  return nanoseconds;
}

// Decides a sequence. One that cannot be decided emits nothing and keeps its root, where the caller
// wants to know of it and not to stop.
void VerifyOrReport(Rule rule, TreeVerifier* verifier, VerifyItem* item) {
  if (item->error == nullptr) return VerifyOne(rule, verifier, item);
  item->error->clear();
  try {
    VerifyOne(rule, verifier, item);
  } catch (const Error& error) {
    *item->error = error.what();
    item->num_nodes = item->num_tokens = 0;
    item->bonus = -1;
    item->finished = false;
    if (item->kept != nullptr) item->kept[0] = item->input.rows[0];
  }
}

}  // namespace

void WriteOutcome(const Outcome& outcome, VerifyItem* item) {
  const SequenceInput& input = item->input;
  int32_t length = 0;
  for (int32_t v = outcome.node; v > 0; v = input.parents[v]) item->nodes[length++] = v;
  std::reverse(item->nodes, item->nodes + length);
  item->num_nodes = item->num_tokens = 0;
  item->finished = false;
  while (item->num_nodes < length && !item->finished) {
    const int32_t token = input.tokens[item->nodes[item->num_nodes++]];
    item->tokens[item->num_tokens++] = token;
    item->finished = input.IsStop(token);
  }
  if (!item->finished) {
    item->tokens[item->num_tokens++] = outcome.bonus;
    item->finished = input.IsStop(outcome.bonus);
  }
  item->bonus = item->finished ? -1 : outcome.bonus;
  if (item->kept == nullptr) return;
  item->kept[0] = input.rows[0];
  for (int32_t i = 0; i < item->num_nodes; ++i) item->kept[i + 1] = input.rows[item->nodes[i]];
}

void VerifyItems(Rule rule, int32_t vocab_size, const ShareItems& share_items,
                 std::vector<VerifyItem>* items) {
  const ItemBatch batch{vocab_size, static_cast<int64_t>(items->size()),
                        Cost(rule, vocab_size, *items), "sequence"};
  share_items(batch, [&](const VocabContext& vocab, const std::function<int64_t()>& next) {
    TreeVerifier verifier(vocab);
    for (int64_t i = next(); i >= 0; i = next()) VerifyOrReport(rule, &verifier, &(*items)[i]);
  });
}

}  // namespace kvctl
