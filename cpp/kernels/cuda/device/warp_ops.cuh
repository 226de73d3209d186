/*!
 * \file kernels/cuda/device/warp_ops.cuh
 * \brief Instructions without a C++ equivalent: asynchronous copies, and tiles of matrices in the
 * registers of a warp. sm_80 and later.
 *
 * A tile of 8 x 8 16-bit elements lies in one register of each lane: lane l holds row l / 4,
 * columns 2 (l % 4) and 2 (l % 4) + 1. (PTX ISA, "Matrix fragments for mma.m16n8k16".)
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_WARP_OPS_CUH_
#define KVCTL_KERNELS_CUDA_DEVICE_WARP_OPS_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/device/numbers.cuh"

#ifdef KVCTL_CUDA_EMULATED
#include "warp_ops.h"
#endif

namespace kvctl::cuda {

#ifdef KVCTL_CUDA_EMULATED
using emulate::CommitCopies;
using emulate::CopyAsync;
using emulate::LoadTiles;
using emulate::LoadTilesTransposed;
using emulate::MultiplyAdd;
template <int kPending>
void WaitCopies() {
  emulate::WaitCopies(kPending);
}
#else

__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/*! \brief Starts copying source_bytes (0 to 16) to shared memory, padded with zeros to 16 bytes;
 * both addresses aligned to 16. */
__device__ inline void CopyAsync(void* target, const void* source, int source_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(SharedAddress(target)),
               "l"(source), "r"(source_bytes)
               : "memory");
}
/*! \brief Closes a group of this thread's copies. */
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
/*! \brief Waits for all groups of this thread but the last kPending. A barrier makes the copies
 * visible to other threads. */
template <int kPending>
__device__ inline void WaitCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

/*! \brief Loads four tiles; lane l gives the address of row l % 8 of tile l / 8. */
__device__ inline void LoadTiles(uint32_t (&tiles)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(SharedAddress(row))
               : "memory");
}
/*! \brief The same, each tile transposed. */
__device__ inline void LoadTilesTransposed(uint32_t (&tiles)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(SharedAddress(row))
               : "memory");
}

/*!
 * \brief c += a b for a 16 x 16, b 16 x 8, c 16 x 8.
 *
 * a: tiles (rows 0-7, columns 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15). b: the tiles of its
 * transpose, (columns 0-7, rows 0-7), (columns 0-7, rows 8-15). c: elements as in a tile, c[0..1]
 * of rows 0-7, c[2..3] of rows 8-15.
 */
__device__ inline void MultiplyAdd(Half, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void MultiplyAdd(Bfloat, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

/*! \brief 2^x within 2 ulp, 0 for -inf. */
__device__ inline float Exp2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_WARP_OPS_CUH_
