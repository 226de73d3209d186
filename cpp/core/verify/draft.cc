#include "core/verify/draft.h"

#include <algorithm>

namespace kvctl {
namespace {

// Rounds a distribution to T and reads it back, so that tokens are drawn from the numbers that the
// caller receives.
template <typename T>
void WriteDistribution(const VocabContext& vocab, T* probs, Distribution* distribution) {
  for (int32_t x = 0; x < vocab.size(); ++x) {
    probs[x] = static_cast<T>(distribution->weights[x] / distribution->total);
  }
  vocab.FromProbs(probs, distribution);
}

int32_t MostLikely(const Distribution& distribution) {
  const auto best = std::max_element(distribution.weights.begin(), distribution.weights.end());
  return static_cast<int32_t>(best - distribution.weights.begin());
}

void DraftOne(Drawn how, int32_t n, DType probs_type, const VocabContext& vocab,
              RowSampler* sampler, Distribution* distribution, DraftItem* item) {
  sampler->Load(item->row, *item->sampling);
  sampler->FillDistribution(distribution);
  if (item->probs != nullptr) {
    if (probs_type == DType::kFloat64) {
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
            ? MostLikely(*distribution)
            : vocab.SampleToken(*distribution,
                                item->stream.Bits(Purpose::kDraft, item->root_position, node));
    if (how != Drawn::kIndependent) distribution->Remove(item->tokens[i]);
  }
}

}  // namespace

void DraftItems(Drawn how, int32_t n, DType probs_type, int32_t vocab_size,
                const ShareItems& share_items, std::vector<DraftItem>* items) {
  const auto count = static_cast<int64_t>(items->size());
  const ItemBatch batch{vocab_size, count, 3.0 * vocab_size * static_cast<double>(count), "row"};
  share_items(batch, [&](const VocabContext& vocab, const std::function<int64_t()>& next) {
    RowSampler sampler(vocab);
    Distribution distribution;
    for (int64_t i = next(); i >= 0; i = next()) {
      DraftOne(how, n, probs_type, vocab, &sampler, &distribution, &(*items)[i]);
    }
  });
}

}  // namespace kvctl
