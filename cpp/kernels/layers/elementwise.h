/*!
 * \file kernels/layers/elementwise.h
 * \brief What models add to, or apply to, every element of a tensor.
 */
#ifndef KVCTL_KERNELS_LAYERS_ELEMENTWISE_H_
#define KVCTL_KERNELS_LAYERS_ELEMENTWISE_H_

#include <cstdint>

namespace kvctl {

/*! \brief out = x + bias, for each row of (rows, cols); in and out may be the same memory. */
void AddBias(const float* x, const float* bias, int64_t rows, int64_t cols, float* out);

/*! \brief out = cap * tanh(x / cap) for `count` elements; in and out may be the same memory. */
void SoftCap(const float* x, int64_t count, float cap, float* out);

/*! \brief out = x * factor + addend; addend may be nullptr, and all may be the same memory. */
void ScaleAdd(const float* x, int64_t count, float factor, const float* addend, float* out);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_LAYERS_ELEMENTWISE_H_
