// top-k, top-p and min-p, exactly: sums of integers, ties to the lower id.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/exact_math.h"
#include "core/sampling.h"

namespace kvctl {
namespace {

// Exponentials are positive, so their bits order them: a bucket is the exponent and three more
// bits.
constexpr int kBucketShift = 20;
constexpr int kNumBuckets = 1 << (31 - kBucketShift);

uint32_t Bucket(float exp) {
  uint32_t bits;
  std::memcpy(&bits, &exp, sizeof(bits));
  return bits >> kBucketShift;
}

struct BucketSum {
  uint64_t mass = 0;
  int64_t count = 0;
};

/*! \brief Where a prefix of the order (weight descending, id ascending) ends. */
struct Cut {
  float exp = 0;      // the last weight kept
  int32_t token = 0;  // and, among tokens of that weight, the last id
  uint64_t mass = 0;
};

/*!
 * \brief The shortest prefix of at least `count` tokens or of at least `mass`, whichever comes
 * first. Only the bucket in which it ends is sorted.
 */
Cut Prefix(const float* exps, int32_t size, const std::vector<BucketSum>& buckets, int64_t count,
           double mass) {
  Cut cut;
  int64_t seen = 0;
  for (int32_t b = kNumBuckets - 1; b >= 0; --b) {
    if (buckets[b].count == 0) continue;
    const bool ends_here =
        seen + buckets[b].count >= count || static_cast<double>(cut.mass + buckets[b].mass) >= mass;
    if (!ends_here) {
      seen += buckets[b].count;
      cut.mass += buckets[b].mass;
      continue;
    }
    std::vector<std::pair<float, int32_t>> members;
    for (int32_t i = 0; i < size; ++i) {
      if (Bucket(exps[i]) == static_cast<uint32_t>(b) && ToFixed(exps[i]) > 0) {
        members.emplace_back(-exps[i], i);
      }
    }
    std::sort(members.begin(), members.end());
    for (const auto& [negative, token] : members) {
      cut.exp = -negative;
      cut.token = token;
      cut.mass += ToFixed(cut.exp);
      if (++seen >= count || static_cast<double>(cut.mass) >= mass) return cut;
    }
  }
  cut.exp = 0;  // everything is kept
  cut.token = size;
  return cut;
}

}  // namespace

uint64_t Truncate(const Sampling& sampling, int32_t size, uint64_t total, float* exps) {
  std::vector<BucketSum> buckets(kNumBuckets);
  float largest = 0;
  for (int32_t i = 0; i < size; ++i) {
    const uint64_t weight = ToFixed(exps[i]);
    if (weight == 0) continue;
    BucketSum& bucket = buckets[Bucket(exps[i])];
    bucket.mass += weight;
    ++bucket.count;
    largest = std::max(largest, exps[i]);
  }
  Cut cut{0, size, total};
  if (sampling.top_k > 0 && sampling.top_k < size) {
    cut = Prefix(exps, size, buckets, sampling.top_k, static_cast<double>(total) * 2);
  }
  if (sampling.top_p < 1) {
    // A top-p prefix of what top-k left is a prefix of the whole, or all that top-k left.
    const Cut top_p = Prefix(exps, size, buckets, static_cast<int64_t>(size) + 1,
                             sampling.top_p * static_cast<double>(cut.mass));
    if (top_p.mass < cut.mass) cut = top_p;
  }
  const double least = sampling.min_p * static_cast<double>(ToFixed(largest));
  uint64_t left = 0;
  for (int32_t i = 0; i < size; ++i) {
    const bool kept = (exps[i] > cut.exp || (exps[i] == cut.exp && i <= cut.token)) &&
                      static_cast<double>(ToFixed(exps[i])) >= least;
    if (!kept) exps[i] = 0;
    left += ToFixed(exps[i]);
  }
  return left;
}

}  // namespace kvctl
