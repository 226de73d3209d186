/*!
 * \file kernels/cuda/attention/attention_float8.cuh
 * \brief Products of q and the weights with K and V of 8 bits, on tensor cores for float16.
 *
 * A warp loads tiles of bytes as if two of them were one element of 16 bits, and turns the four
 * bytes in a register into two factors. So each lane gets other elements than of 16-bit K and V;
 * what they are multiplied with, and where the sums go, is ordered likewise.
 */
#ifndef KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_FLOAT8_CUH_
#define KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_FLOAT8_CUH_

#include "kernels/cuda/device/float8.cuh"
#include "kernels/cuda/device/warp_ops.cuh"

namespace kvctl::cuda {

/*!
 * \brief scores += q k / kHalvesFactor, of 16 queries and 8 kTiles keys.
 *
 * A lane has elements 4 (l % 4) to 4 (l % 4) + 3 of every 16 of a key, so it takes those of q.
 *
 * \param q The warp's first query in shared memory, rows of kQueryStride elements.
 * \param k Its first key, rows of kStride bytes.
 */
template <int kHeadDim, int kQueryStride, int kStride, int kTiles>
__device__ __forceinline__ void ScoreFloat8(const Half* q, const Float8* k, int32_t lane,
                                            float (&scores)[kTiles][4]) {
  static_assert(kHeadDim % 32 == 0 && kTiles % 2 == 0, "two tiles of bytes at a time");
  const int32_t tile = lane / 8, within = lane % 8;
  const Half* q_at = q + lane / 4 * kQueryStride + lane % 4 * 4;
  const Float8* k_at = k + (tile / 2 * 8 + within) * kStride + tile % 2 * 16;
#pragma unroll
  for (int d = 0; d < kHeadDim; d += 32) {
    uint32_t a[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // queries l / 4 and l / 4 + 8
        const auto* from =
            reinterpret_cast<const uint32_t*>(q_at + i * 8 * kQueryStride + d + half * 16);
        const uint32_t low = from[0], high = from[1];
        a[half][i] = (low & 0xffffu) | high << 16;
        a[half][i + 2] = low >> 16 | (high & 0xffff0000u);
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t bytes[4];
      LoadTiles(bytes, k_at + n * 8 * kStride + d);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const HalfPairs b = ToHalves(bytes[i]);
        MultiplyAdd(Half{}, scores[n + i / 2], a[i % 2], b.even, b.odd);
      }
    }
  }
}

/*!
 * \brief sums += p v / kHalvesFactor, of 16 queries and 8 kTiles keys.
 *
 * sums[2 i] are of the even elements of 16 i to 16 i + 15, sums[2 i + 1] of the odd ones: see
 * OrderFloat8.
 *
 * \param v The warp's first value in shared memory, rows of kStride bytes.
 */
template <int kHeadDim, int kStride, int kTiles>
__device__ __forceinline__ void WeighFloat8(const Float8* v, int32_t lane,
                                            const float (&p)[kTiles][4],
                                            float (&sums)[kHeadDim / 8][4]) {
  const int32_t tile = lane / 8, within = lane % 8;
  const Float8* v_at = v + (tile % 2 * 8 + within) * kStride + tile / 2 * 16;
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    const uint32_t a[4] = {Pack<Half>(p[n][0], p[n][1]), Pack<Half>(p[n][2], p[n][3]),
                           Pack<Half>(p[n + 1][0], p[n + 1][1]),
                           Pack<Half>(p[n + 1][2], p[n + 1][3])};
#pragma unroll
    for (int d = 0; d < kHeadDim / 8; d += 4) {
      uint32_t bytes[4];
      LoadTilesTransposed(bytes, v_at + n * 8 * kStride + d * 8);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const HalfPairs first = ToHalves(bytes[2 * i]), second = ToHalves(bytes[2 * i + 1]);
        MultiplyAdd(Half{}, sums[d + 2 * i], a, first.even, second.even);
        MultiplyAdd(Half{}, sums[d + 2 * i + 1], a, first.odd, second.odd);
      }
    }
  }
}

/*! \brief Multiplies the sums, and orders each lane's: then tile 2 i has elements 16 i + 4 (l % 4)
 * and the next one, tile 2 i + 1 the two behind them. */
template <int kTiles>
__device__ __forceinline__ void OrderFloat8(float factor, float (&sums)[kTiles][4]) {
#pragma unroll
  for (int d = 0; d < kTiles; d += 2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float second = sums[d + 1][2 * i];
      sums[d + 1][2 * i] = sums[d][2 * i + 1] * factor;
      sums[d + 1][2 * i + 1] *= factor;
      sums[d][2 * i] *= factor;
      sums[d][2 * i + 1] = second * factor;
    }
  }
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_FLOAT8_CUH_
