/*!
 * \file kernels/cuda/verify/row_vectors.cuh
 * \brief Several tokens of a row at once: loads of 16 bytes (8 of a row of 16-bit logits) where the
 * row's address allows them.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_ROW_VECTORS_CUH_
#define KVCTL_KERNELS_CUDA_VERIFY_ROW_VECTORS_CUH_

#include <cstdint>
#include <cstring>

#include "kernels/cuda/device/elements.cuh"

namespace kvctl::cuda {

/*! \brief Tokens of a vector. */
constexpr int kVectorTokens = 4;

/*! \brief Which tokens a thread has: vector v holds first + v * stride + j * step, j from 0 to 3.
 */
struct TokenSpread {
  int32_t first, stride, step;
  __device__ int32_t at(int vector, int j) const { return first + vector * stride + j * step; }
};

/*! \brief The tokens from `begin` on that thread `index` of `threads` has where all share them: of
 * rows that have no vectors, the tokens of neighbouring threads are adjacent instead. */
__device__ inline TokenSpread ShareTokens(int32_t begin, int32_t index, int32_t threads,
                                          bool vectors) {
  const int32_t stride = kVectorTokens * threads;
  if (vectors) return {begin + index * kVectorTokens, stride, 1};
  return {begin + index, stride, threads};
}
/*! \brief Adjacent tokens. */
__device__ inline TokenSpread AdjacentTokens(int32_t first) { return {first, kVectorTokens, 1}; }

/*! \brief Whether all rows of an array can be read in vectors. */
__device__ inline bool HasVectors(const void* rows, int32_t element_bytes, int32_t vocab_size) {
  const auto bytes = static_cast<uint32_t>(kVectorTokens * element_bytes);
  const uint32_t alignment = bytes < 16 ? bytes : 16;
  return vocab_size % kVectorTokens == 0 && reinterpret_cast<uintptr_t>(rows) % alignment == 0;
}
__device__ inline int32_t ElementBytes(DType type) { return type == DType::kFloat32 ? 4 : 2; }

template <typename T>
__device__ void SplitHalves(uint64_t words, float (&out)[kVectorTokens]) {
#pragma unroll
  for (int j = 0; j < kVectorTokens; ++j) {
    out[j] = ToFloat(T{static_cast<uint16_t>(words >> 16 * j)});
  }
}

/*!
 * \brief Loads tokens of a row; those from `end` on become `outside`. All loads are queued before
 * one is used.
 * \param vectors HasVectors of the row, and step 1.
 */
template <int kVectors>
__device__ __forceinline__ void LoadTokens(const void* row, DType type, bool vectors,
                                           const TokenSpread& spread, int32_t end, float outside,
                                           float (&out)[kVectors][kVectorTokens]) {
  if (!vectors) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int j = 0; j < kVectorTokens; ++j) {
        const int32_t x = spread.at(v, j);
        out[v][j] = x < end ? LoadElement(row, type, x) : outside;
      }
    }
  } else if (type == DType::kFloat32) {
    uint4 words[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int32_t x = spread.at(v, 0);
      if (x < end) words[v] = *reinterpret_cast<const uint4*>(static_cast<const float*>(row) + x);
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (spread.at(v, 0) < end) {
        memcpy(out[v], &words[v], sizeof(out[v]));
      } else {
        out[v][0] = out[v][1] = out[v][2] = out[v][3] = outside;
      }
    }
  } else {
    uint64_t words[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int32_t x = spread.at(v, 0);
      words[v] = 0;
      if (x < end)
        words[v] = *reinterpret_cast<const uint64_t*>(static_cast<const uint16_t*>(row) + x);
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (spread.at(v, 0) >= end) {
        out[v][0] = out[v][1] = out[v][2] = out[v][3] = outside;
      } else if (type == DType::kFloat16) {
        SplitHalves<Half>(words[v], out[v]);
      } else {
        SplitHalves<Bfloat>(words[v], out[v]);
      }
    }
  }
}

/*! \brief The same for a row of float64 probabilities; 0 from `end` on. One vector at a time. */
__device__ __forceinline__ void LoadDoubles(const double* row, bool vectors,
                                            const TokenSpread& spread, int vector, int32_t end,
                                            double (&out)[kVectorTokens]) {
  out[0] = out[1] = out[2] = out[3] = 0;
  if (!vectors) {
#pragma unroll
    for (int j = 0; j < kVectorTokens; ++j) {
      const int32_t x = spread.at(vector, j);
      if (x < end) out[j] = row[x];
    }
    return;
  }
  const int32_t x = spread.at(vector, 0);
  if (x >= end) return;
  const uint4 low = *reinterpret_cast<const uint4*>(row + x);
  const uint4 high = *reinterpret_cast<const uint4*>(row + x + 2);
  memcpy(out, &low, sizeof(low));
  memcpy(out + 2, &high, sizeof(high));
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_ROW_VECTORS_CUH_
