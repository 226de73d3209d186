/*!
 * \file kernels/cpu/attention/attention_int8-inl.h
 * \brief Rows of pages in float32, those of 8-bit integers among them.
 *
 * Attention over 8-bit pages is that over the float32 values which they stand for, bit for bit: the
 * keys and values of a chunk are dequantised first, and the rest is the same code.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_INT8_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_INT8_INL_H_

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/attention.h"
#include "kernels/cpu/simd/vec-inl.h"
#include "kernels/int8_row.h"

namespace kvctl {
namespace {

/*! \brief Whether the keys and values of every chunk are copied to float32 first. */
inline bool PacksAlways(const AttentionArgs& args) { return args.kv_dtype == DType::kInt8; }

/*! \brief What the loops of attention read, of pages of T. */
template <typename T>
using AttendedType = std::conditional_t<std::is_same_v<T, int8_t>, float, T>;

/*! \brief A row of a key or value in float32. */
template <typename T>
inline void UnpackRow(const T* row, int32_t head_dim, float* to) {
  for (int32_t d = 0; d < head_dim; d += kLanes) Store(to + d, Load(row + d));
}
inline void UnpackRow(const int8_t* row, int32_t head_dim, float* to) {
  float factor;
  std::memcpy(&factor, row + head_dim, sizeof(factor));
  const Vec scale = Set(factor);
  for (int32_t d = 0; d < head_dim; d += kLanes) Store(to + d, Mul(Load(row + d), scale));
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_INT8_INL_H_
