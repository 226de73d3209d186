// top-k, top-p and min-p by exact sums of integers; ties go to the lower id.
#include <algorithm>
#include <utility>
#include <vector>

#include "core/sampling/sampling.h"
#include "core/support/exact_math.h"

namespace kvctl {
namespace {

// A bucket holds one exponent and three bits more.
constexpr int kBucketShift = 20;
constexpr int kNumBuckets = 1 << (31 - kBucketShift);

uint32_t Bucket(float exp) { return ExpBits(exp) >> kBucketShift; }

struct BucketSum {
  uint64_t mass = 0;
  int64_t count = 0;
};

/*! \brief A prefix of the order (weight descending, id ascending). */
struct PrefixEnd {
  float exp = 0;      // the last weight kept
  int32_t token = 0;  // the last id kept among tokens of that weight
  uint64_t mass = 0;
};

/*! \brief Calls f(token, exp) for every token with a weight above 0. */
template <typename F>
void ForWeights(int32_t size, const ExpPieces& exps, F f) {
  ForPieces(0, size, [&](int32_t at, int32_t n) {
    float piece[kVocabPiece];
    exps(at, n, piece);
    for (int32_t i = 0; i < n; ++i) {
      if (HasWeight(piece[i])) f(at + i, piece[i]);
    }
  });
}

/*! \brief The shortest prefix that meets a goal. Only the bucket in which it ends is sorted. */
PrefixEnd Prefix(int32_t size, const ExpPieces& exps, const std::vector<BucketSum>& buckets,
                 const PrefixGoal& goal) {
  PrefixEnd cut;
  int64_t seen = 0;
  for (int32_t b = kNumBuckets - 1; b >= 0; --b) {
    if (buckets[b].count == 0) continue;
    if (!goal.IsMetBy(seen + buckets[b].count, cut.mass + buckets[b].mass)) {
      seen += buckets[b].count;
      cut.mass += buckets[b].mass;
      continue;
    }
    std::vector<std::pair<float, int32_t>> members;
    ForWeights(size, exps, [&](int32_t token, float exp) {
      if (Bucket(exp) == static_cast<uint32_t>(b)) members.emplace_back(-exp, token);
    });
    std::sort(members.begin(), members.end());
    for (const auto& [negative, token] : members) {
      cut.exp = -negative;
      cut.token = token;
      cut.mass += ToFixed(cut.exp);
      if (goal.IsMetBy(++seen, cut.mass)) return cut;
    }
  }
  cut.exp = 0;  // everything is kept
  cut.token = size;
  return cut;
}

}  // namespace

Cut FindCut(const Sampling& sampling, int32_t size, uint64_t total, const ExpPieces& exps) {
  std::vector<BucketSum> buckets(kNumBuckets);
  float largest = 0;
  ForWeights(size, exps, [&](int32_t, float exp) {
    BucketSum& bucket = buckets[Bucket(exp)];
    bucket.mass += ToFixed(exp);
    ++bucket.count;
    largest = std::max(largest, exp);
  });
  PrefixEnd end{0, size, total};
  if (sampling.top_k > 0 && sampling.top_k < size) {
    end = Prefix(size, exps, buckets, {sampling.top_k, static_cast<double>(total) * 2});
  }
  if (sampling.top_p < 1) {
    // A top-p prefix of what top-k left is a prefix of the whole, or all that top-k left.
    const PrefixEnd top_p =
        Prefix(size, exps, buckets,
               {static_cast<int64_t>(size) + 1, sampling.top_p * static_cast<double>(end.mass)});
    if (top_p.mass < end.mass) end = top_p;
  }
  return {end.exp, end.token, sampling.min_p * static_cast<double>(ToFixed(largest))};
}

}  // namespace kvctl
