/*!
 * \file kernels/cpu/attention/attention_shape-inl.h
 * \brief Scores that are more than scaled dot products.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_SHAPE_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_SHAPE_INL_H_

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cpu/attention/attention_micro-inl.h"
#include "kernels/cpu/attention/attention_scratch-inl.h"

namespace kvctl {
namespace {

/*!
 * \brief Scores, times log2 e, from dot products: soft cap (Gemma Team 2024, arXiv:2408.00118,
 * sec. 2) and ALiBi (Press et al. 2022, arXiv:2108.12409, sec. 3).
 * \param positions Of the keys. \param position Of the query. \param head The query head.
 */
inline Vec ShapeScores(const AttentionArgs& args, Vec dot, const float* positions, int32_t position,
                       int32_t head) {
  Vec score = Mul(dot, Set(args.sm_scale));
  if (args.soft_cap > 0) {
    // tanh x = sign(x) (1 - e) / (1 + e), e = exp(-2 |x|).
    const Vec x = Div(score, Set(args.soft_cap));
    const Vec size = Max(Sub(Zero(), x), x);  // NaN stays NaN
    const Vec e = Exp2(Mul(size, Set(-2 * kLog2E)));
    const Vec tanh = Div(Sub(Set(1.f), e), Add(Set(1.f), e));
    score = Mul(Set(args.soft_cap), CopySign(tanh, x));
  }
  if (args.alibi_slopes != nullptr) {
    const Vec distance = Sub(Load(positions), Set(static_cast<float>(position)));
    score = Fma(Set(args.alibi_slopes[head]), distance, score);
  }
  return Mul(score, Set(kLog2E));
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_SHAPE_INL_H_
