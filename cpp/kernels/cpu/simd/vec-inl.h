/*!
 * \file kernels/cpu/simd/vec-inl.h
 * \brief Vec, a vector of kLanes floats, and its operations, for the instruction set that the
 * including file is compiled for.
 *
 * Like every -inl.h, it defines everything in an unnamed namespace: each including file gets its
 * own functions, so that the linker cannot keep an AVX copy for the baseline.
 */
#ifndef KVCTL_KERNELS_CPU_SIMD_VEC_INL_H_
#define KVCTL_KERNELS_CPU_SIMD_VEC_INL_H_

#if defined(__AVX512F__)
#include "kernels/cpu/simd/vec_avx512-inl.h"
#elif defined(__AVX2__)
#include "kernels/cpu/simd/vec_avx2-inl.h"
#else
#include "kernels/cpu/simd/vec_baseline-inl.h"
#endif

#endif  // KVCTL_KERNELS_CPU_SIMD_VEC_INL_H_
