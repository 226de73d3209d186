#include "kernels/verify.h"

#include <algorithm>

#include "core/support/exact_math.h"
#include "kernels/cpu/sampling/verify_parallel.h"

namespace kvctl {
namespace {

bool IsStop(const VerifyItem& item, int32_t token) {
  const int32_t* end = item.stop_tokens + item.num_stop_tokens;
  return std::find(item.stop_tokens, end, token) != end;
}

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

// Nanoseconds that a rule takes for each logit of a sequence, rows never reached included: measured
// on AVX2, and only to decide whether threads are worth waking.
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

// Writes a distribution down and reads it back, so that what is drawn from is what the caller
// holds.
template <typename T>
void WriteDistribution(const VocabContext& vocab, T* probs, Distribution* distribution) {
  for (int32_t x = 0; x < vocab.size(); ++x) {
    probs[x] = static_cast<T>(distribution->weights[x] / distribution->total);
  }
  vocab.FromProbs(probs, distribution);
}

int32_t Likeliest(const Distribution& distribution) {
  const auto best = std::max_element(distribution.weights.begin(), distribution.weights.end());
  return static_cast<int32_t>(best - distribution.weights.begin());
}

void DraftOne(Drawn how, int32_t n, RowType probs_type, const VocabContext& vocab,
              RowSampler* sampler, Distribution* distribution, DraftItem* item) {
  sampler->Load(item->row, *item->sampling);
  sampler->FillDistribution(distribution);
  if (item->probs != nullptr) {
    if (probs_type == RowType::kFloat64) {
      WriteDistribution(vocab, static_cast<double*>(item->probs), distribution);
    } else {
      WriteDistribution(vocab, static_cast<float*>(item->probs), distribution);
    }
  }
  if (how == Drawn::kCoupled) {
    sampler->SampleGumbel(GumbelKey(item->stream, item->root_position + item->depth), n,
                          item->tokens);
    return;
  }
  for (int32_t i = 0; i < n; ++i) {
    if (!(distribution->total > 0)) {
      item->tokens[i] = -1;
      continue;
    }
    const uint32_t node = item->first_node + static_cast<uint32_t>(i);
    item->tokens[i] =
        how == Drawn::kDeterministic
            ? Likeliest(*distribution)
            : vocab.SampleToken(*distribution,
                                item->stream.Bits(Purpose::kDraft, item->root_position, node));
    if (how != Drawn::kIndependent) distribution->Remove(item->tokens[i]);
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
    item->finished = IsStop(*item, token);
  }
  if (!item->finished) {
    item->tokens[item->num_tokens++] = outcome.bonus;
    item->finished = IsStop(*item, outcome.bonus);
  }
  item->bonus = item->finished ? -1 : outcome.bonus;
}

void VerifyCpu(Rule rule, int32_t vocab_size, std::vector<VerifyItem>* items) {
  ForItems(vocab_size, static_cast<int64_t>(items->size()), Cost(rule, vocab_size, *items),
           "sequence", [&](const VocabContext& vocab, const std::function<int64_t()>& next) {
             TreeVerifier verifier(vocab);
             for (int64_t i = next(); i >= 0; i = next()) {
               VerifyOne(rule, &verifier, &(*items)[i]);
             }
           });
}

void DraftCpu(Drawn how, int32_t n, RowType probs_type, int32_t vocab_size,
              std::vector<DraftItem>* items) {
  ForItems(vocab_size, static_cast<int64_t>(items->size()),
           3.0 * vocab_size * static_cast<double>(items->size()), "row",
           [&](const VocabContext& vocab, const std::function<int64_t()>& next) {
             RowSampler sampler(vocab);
             Distribution distribution;
             for (int64_t i = next(); i >= 0; i = next()) {
               DraftOne(how, n, probs_type, vocab, &sampler, &distribution, &(*items)[i]);
             }
           });
}

}  // namespace kvctl
