#include "kernels/merge_attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/simd/with_type.h"
#include "kernels/team.h"

namespace kvctl {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kParallelElements = 1 << 15;

/*! \brief The weights of both parts for one query and head. */
struct Weights {
  float part;
  float other;

  Weights(float lse, float other_lse, LseBase base, float* merged) {
    const float largest = std::max(lse, other_lse);
    if (largest == -INFINITY) {  // neither part saw a key
      part = 1.f;
      other = 0.f;
      return;
    }
    const bool two = base == LseBase::kTwo;
    const auto power = [two](float x) { return two ? std::exp2(x) : std::exp(x); };
    part = power(lse - largest);
    other = power(other_lse - largest);
    const float sum = part + other;
    *merged = largest + (two ? std::log2(sum) : std::log(sum));
    part /= sum;
    other /= sum;
  }
};

template <typename T, typename U>
void Merge(int64_t num_query_tokens, int64_t num_heads, int64_t head_dim, LseBase base,
           const AttentionPart& part, const AttentionPart& other) {
  const int64_t count = num_query_tokens * num_heads;
#pragma omp parallel for if (UseTeam(count * head_dim > kParallelElements))
  for (int64_t i = 0; i < count; ++i) {
    const Weights weights(part.lse[i], other.lse[i], base, part.lse + i);
    if (weights.other == 0.f) continue;
    T* out = static_cast<T*>(part.out) + i * head_dim;
    const U* add = static_cast<const U*>(other.out) + i * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) {
      const float own = weights.part == 0.f ? 0.f : weights.part * ToFloat(out[d]);
      FromFloat(own + weights.other * ToFloat(add[d]), out + d);
    }
  }
}

}  // namespace

void MergeAttentionCpu(int64_t num_query_tokens, int64_t num_heads, int64_t head_dim, LseBase base,
                       const AttentionPart& part, const AttentionPart& other) {
  WithType(part.dtype, [&](auto type) {
    WithType(other.dtype, [&](auto other_type) {
      Merge<decltype(type), decltype(other_type)>(num_query_tokens, num_heads, head_dim, base, part,
                                                  other);
    });
  });
}

}  // namespace kvctl
