#include <cmath>
#include <vector>

#include "check.h"
#include "kernels/convert.h"
#include "kernels/merge_attention.h"

namespace kvctl {
namespace {

struct Part {
  std::vector<float> out;
  std::vector<float> lse;

  AttentionPart view() { return {out.data(), DType::kFloat32, lse.data()}; }
};

/*! \brief One query, one head: softmax attention over some scores whose values are (v, -v). */
Part Attend(const std::vector<double>& scores, const std::vector<double>& values, LseBase base) {
  double sum = 0, weighted = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    sum += std::exp(scores[i]);
    weighted += std::exp(scores[i]) * values[i];
  }
  const double lse = base == LseBase::kE ? std::log(sum) : std::log2(sum);
  const float out = scores.empty() ? 0.f : float(weighted / sum);
  return {{out, -out}, {float(lse)}};
}

}  // namespace

TEST(MergedPartsEqualAttentionOverBoth) {
  for (LseBase base : {LseBase::kE, LseBase::kTwo}) {
    Part part = Attend({0.5, 2}, {3, -1}, base), other = Attend({-1, 1, 4}, {2, 5, 0.25}, base);
    const Part whole = Attend({0.5, 2, -1, 1, 4}, {3, -1, 2, 5, 0.25}, base);
    MergeAttentionCpu(1, 1, 2, base, part.view(), other.view());
    for (int i = 0; i < 2; ++i) EXPECT(std::abs(part.out[i] - whole.out[i]) < 1e-6);
    EXPECT(std::abs(part.lse[0] - whole.lse[0]) < 1e-6);
  }
}

TEST(APartWithoutKeysChangesNoBit) {
  Part part = Attend({0.3, 0.1}, {1. / 3, 1. / 7}, LseBase::kE),
       nothing = Attend({}, {}, LseBase::kE);
  nothing.out = {NAN, NAN};
  const Part before = part;
  MergeAttentionCpu(1, 1, 2, LseBase::kE, part.view(), nothing.view());
  EXPECT(part.out == before.out && part.lse == before.lse);
  MergeAttentionCpu(1, 1, 2, LseBase::kE, nothing.view(), part.view());
  EXPECT(nothing.out == before.out && nothing.lse == before.lse);
  Part also_nothing = {{0, 0}, {-INFINITY}}, third = also_nothing;
  MergeAttentionCpu(1, 1, 2, LseBase::kTwo, third.view(), also_nothing.view());
  EXPECT(third.out[0] == 0 && third.lse[0] == -INFINITY);
}

TEST(MergingRoundsOnceToTheTypeOfThePart) {
  // Many queries, so that threads share them; halves of 1 and of 2049 are merged to 1025.
  const int64_t queries = 4096;
  std::vector<Float16> out(queries * 8);
  for (Float16& value : out) FromFloat(1.f, &value);
  std::vector<float> other(queries * 8, 2049.f), lse(queries, 3.f), other_lse(queries, 3.f);
  MergeAttentionCpu(queries, 1, 8, LseBase::kTwo, {out.data(), DType::kFloat16, lse.data()},
                    {other.data(), DType::kFloat32, other_lse.data()});
  for (const Float16& value : out) EXPECT(ToFloat(value) == 1025.f);
  for (float value : lse) EXPECT(value == 4.f);
}

}  // namespace kvctl
