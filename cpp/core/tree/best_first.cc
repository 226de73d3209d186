#include "core/tree/best_first.h"

#include <algorithm>
#include <cmath>
#include <queue>
#include <utility>

#include "kvctl/error.h"

namespace kvctl {
namespace {

// Float32 probabilities of a wide vocabulary sum to 1 only so exactly.
constexpr double kSumTolerance = 1e-3;

struct Candidate {
  double prob;
  int32_t column;
};

bool Before(const Candidate& a, const Candidate& b) {
  return a.prob != b.prob ? a.prob > b.prob : a.column < b.column;
}

// The `count` most probable candidates of one depth in order, without those of probability 0.
template <typename Real>
std::vector<Candidate> MostProbable(const Marginals<Real>& marginals, int32_t depth, size_t count) {
  const Real* probs = marginals.probs + static_cast<size_t>(depth) * marginals.width;
  std::vector<Candidate> best;  // a heap with the least of them in front
  best.reserve(std::min<size_t>(count, marginals.width));
  double sum = 0.0;
  for (int32_t column = 0; column < marginals.width; ++column) {
    const Candidate candidate{static_cast<double>(probs[column]), column};
    if (!(candidate.prob >= 0.0 && candidate.prob <= 1.0 + kSumTolerance)) {
      Throw(ErrorKind::kValue, "marginals[", depth, ", ", column,
            "] must be a probability, in [0, 1], got ", candidate.prob);
    }
    sum += candidate.prob;
    if (candidate.prob == 0.0) continue;
    if (best.size() < count) {
      best.push_back(candidate);
      std::push_heap(best.begin(), best.end(), Before);
    } else if (count > 0 && Before(candidate, best.front())) {
      std::pop_heap(best.begin(), best.end(), Before);
      best.back() = candidate;
      std::push_heap(best.begin(), best.end(), Before);
    }
  }
  if (sum > 1.0 + kSumTolerance) {
    Throw(ErrorKind::kValue, "marginals[", depth, "] must sum to at most 1, got ", sum);
  }
  std::sort_heap(best.begin(), best.end(), Before);
  return best;
}

void CheckTokens(const int32_t* tokens, int32_t depth, int32_t width) {
  std::vector<int32_t> sorted(tokens, tokens + width);
  std::sort(sorted.begin(), sorted.end());
  if (width > 0 && sorted[0] < 0) {
    Throw(ErrorKind::kValue, "tokens[", depth, "] must be at least 0, got ", sorted[0]);
  }
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) {
    Throw(ErrorKind::kValue, "tokens[", depth, "] has token ", *twice, " twice");
  }
}

// A node that could be taken next.
struct Offer {
  double rate;
  int32_t depth;  // of its parent
  int32_t parent;
  int32_t rank;
};

struct Worse {
  bool operator()(const Offer& a, const Offer& b) const {
    if (a.rate != b.rate) return a.rate < b.rate;
    if (a.depth != b.depth) return a.depth > b.depth;
    return a.parent != b.parent ? a.parent > b.parent : a.rank > b.rank;
  }
};

}  // namespace

int64_t BestCount(const double* rates, int64_t count, const double* costs) {
  int64_t best = 0;
  double emitted = 1.0, best_gain = 1.0 / costs[0];
  for (int64_t n = 1; n <= count; ++n) {
    emitted += rates[n - 1];
    if (emitted / costs[n] > best_gain) {
      best = n;
      best_gain = emitted / costs[n];
    }
  }
  return best;
}

template <typename Real>
RatedTree BestFirst(int32_t root, const Marginals<Real>& marginals, int64_t budget,
                    const double* costs) {
  if (budget < 0) Throw(ErrorKind::kValue, "budget must not be negative, got ", budget);
  std::vector<std::vector<Candidate>> candidates;
  candidates.reserve(marginals.depth);
  for (int32_t depth = 0; depth < marginals.depth; ++depth) {
    candidates.push_back(MostProbable(marginals, depth, static_cast<size_t>(budget)));
    if (marginals.tokens != nullptr) {
      const size_t begin = static_cast<size_t>(depth) * marginals.width;
      CheckTokens(marginals.tokens + begin, depth, marginals.width);
    }
  }
  std::vector<int32_t> tokens{root}, parents{-1};
  std::vector<double> rates{1.0};
  std::priority_queue<Offer, std::vector<Offer>, Worse> offers;
  const auto offer = [&](int32_t depth, int32_t parent, int32_t rank) {
    if (depth >= marginals.depth || rank >= static_cast<int32_t>(candidates[depth].size())) return;
    const double rate = rates[parent] * candidates[depth][rank].prob;
    if (rate > 0.0) offers.push({rate, depth, parent, rank});
  };
  offer(0, 0, 0);
  while (!offers.empty() && static_cast<int64_t>(tokens.size()) <= budget) {
    const Offer best = offers.top();
    offers.pop();
    const int32_t column = candidates[best.depth][best.rank].column;
    const size_t place = static_cast<size_t>(best.depth) * marginals.width + column;
    tokens.push_back(marginals.tokens == nullptr ? column : marginals.tokens[place]);
    parents.push_back(best.parent);
    // A product of numbers that are a little more than 1 by rounding must not grow.
    rates.push_back(std::min(best.rate, rates[best.parent]));
    offer(best.depth, best.parent, best.rank + 1);
    offer(best.depth + 1, static_cast<int32_t>(tokens.size()) - 1, 0);
  }
  if (costs != nullptr) {
    const auto count = static_cast<int64_t>(tokens.size()) - 1;
    const size_t kept = 1 + static_cast<size_t>(BestCount(rates.data() + 1, count, costs));
    tokens.resize(kept);
    parents.resize(kept);
    rates.resize(kept);
  }
  return {TokenTree(std::move(tokens), std::move(parents)), std::move(rates)};
}

template RatedTree BestFirst<float>(int32_t, const Marginals<float>&, int64_t, const double*);
template RatedTree BestFirst<double>(int32_t, const Marginals<double>&, int64_t, const double*);

}  // namespace kvctl
