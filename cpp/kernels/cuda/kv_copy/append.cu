#include <algorithm>
#include <cstring>

#include "kernels/cuda/device/elements.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/kv_copy/append.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kThreads = 128;

/*! \brief Elements that a thread loads at once: 16 bytes of 16-bit types. */
constexpr int kVector = 8;

struct Vector {
  float at[kVector];
};

__device__ Vector LoadVector(const void* data, DType dtype, int64_t index) {
  Vector vector;
  if (dtype == DType::kFloat32) {
    const auto* from = reinterpret_cast<const uint4*>(static_cast<const float*>(data) + index);
    const uint4 words[2] = {from[0], from[1]};
    memcpy(vector.at, words, sizeof(words));
    return vector;
  }
  const uint4 words = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(data) + index);
  const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const auto bits = static_cast<uint16_t>(pairs[i / 2] >> i % 2 * 16);
    vector.at[i] = dtype == DType::kFloat16 ? ToFloat(Half{bits}) : ToFloat(Bfloat{bits});
  }
  return vector;
}

__device__ void StoreVector(const Vector& vector, void* data, DType dtype, int64_t index) {
  if (dtype == DType::kFloat32) {
    uint4 words[2];
    memcpy(words, vector.at, sizeof(words));
    auto* to = reinterpret_cast<uint4*>(static_cast<float*>(data) + index);
    to[0] = words[0];
    to[1] = words[1];
    return;
  }
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float first = vector.at[2 * i], second = vector.at[2 * i + 1];
    pairs[i] = dtype == DType::kFloat16 ? Pack<Half>(first, second) : Pack<Bfloat>(first, second);
  }
  *reinterpret_cast<uint4*>(static_cast<uint16_t*>(data) + index) =
      uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
}

/*! \brief Whether the plan is of the shape that the launch, and that of attention after it, are
 * for; otherwise the host is told. */
__device__ bool Fits(const AppendArgs& args) {
  if (args.plan->num_query_tokens == args.num_query_tokens &&
      args.plan->item_shape == args.item_shape) {
    return true;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    const_cast<PlanHeader*>(args.plan)->misfit = 1;
    *args.misfit = 1;
  }
  return false;
}

/*! \brief A thread processes one vector of a head, or the two that are rotated with each other. */
__global__ void __launch_bounds__(kThreads) AppendVectorsKernel(AppendArgs args) {
  WaitForPrevious();
  LetNextCome();
  if (!Fits(args)) return;
  const char* base = reinterpret_cast<const char*>(args.plan);
  const auto* slots = reinterpret_cast<const int32_t*>(base + args.plan->slots);
  const auto* rope = reinterpret_cast<const float*>(base + args.plan->rope);
  const int32_t head_dim = args.page.head_dim, kv_heads = args.page.num_kv_heads;
  const int32_t vectors = head_dim / kVector, half = args.rotary_dim / 2;
  const int32_t q_heads = args.q_out.data == nullptr ? 0 : args.num_qo_heads;
  const int32_t heads = q_heads + 2 * kv_heads;
  const int32_t units = args.plan->num_query_tokens * heads * vectors;
  const auto step = static_cast<int32_t>(gridDim.x * blockDim.x);
  for (auto unit = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x); unit < units;
       unit += step) {
    const int32_t first = unit % vectors * kVector, row = unit / vectors;
    const int32_t head = row % heads, token = row / heads;
    const int32_t part = head < q_heads ? 0 : head < q_heads + kv_heads ? 1 : 2;
    if (part < 2 && first >= half && first < 2 * half) continue;  // done with its other half
    const int32_t within = part == 0 ? head : (head - q_heads) % kv_heads;
    const HeadRows& from = part == 0 ? args.q : part == 1 ? args.k : args.v;
    const int64_t at = token * from.row_stride + static_cast<int64_t>(within) * head_dim + first;
    void* to = part == 0 ? args.q_out.data : args.pages;
    const DType dtype = part == 0 ? args.q_out.dtype : args.page.dtype;
    const int64_t target =
        first + (part == 0 ? token * args.q_out.row_stride + static_cast<int64_t>(within) * head_dim
                           : SlotOffset(args.page, slots[token], part - 1, within));
    Vector a = LoadVector(from.data, from.dtype, at);
    if (part == 2 || first >= half) {
      StoreVector(a, to, dtype, target);
      continue;
    }
    Vector b = LoadVector(from.data, from.dtype, at + half);
    const float* cosines = rope + static_cast<int64_t>(token) * args.rotary_dim + first;
    const Vector c = LoadVector(cosines, DType::kFloat32, 0);
    const Vector s = LoadVector(cosines + half, DType::kFloat32, 0);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float x = a.at[i], y = b.at[i];
      a.at[i] = x * c.at[i] - y * s.at[i];
      b.at[i] = y * c.at[i] + x * s.at[i];
    }
    StoreVector(a, to, dtype, target);
    StoreVector(b, to, dtype, target + half);
  }
}

bool FitsVectors(const HeadRows& rows) {
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 &&
         rows.row_stride * DTypeSize(rows.dtype) % 16 == 0;
}

/*! \brief For what does not fit vectors. A block per token; a thread processes pairs of elements of
 * the heads of q, k and v. */
__global__ void AppendKernel(AppendArgs args) {
  WaitForPrevious();
  LetNextCome();
  if (!Fits(args)) return;
  const char* base = reinterpret_cast<const char*>(args.plan);
  const auto* slots = reinterpret_cast<const int32_t*>(base + args.plan->slots);
  const auto* rope = reinterpret_cast<const float*>(base + args.plan->rope);
  const int32_t head_dim = args.page.head_dim, pairs = head_dim / 2, half = args.rotary_dim / 2;
  const int32_t kv_heads = args.page.num_kv_heads;
  const int32_t q_heads = args.q_out.data == nullptr ? 0 : args.num_qo_heads;
  for (int32_t token = blockIdx.x; token < args.plan->num_query_tokens; token += gridDim.x) {
    const float* cosines = rope + static_cast<int64_t>(token) * args.rotary_dim;
    for (int32_t i = threadIdx.x; i < (q_heads + 2 * kv_heads) * pairs; i += blockDim.x) {
      const int32_t head = i / pairs, pair = i % pairs;
      const int32_t part = head < q_heads ? 0 : head < q_heads + kv_heads ? 1 : 2;
      const int32_t within = part == 0 ? head : (head - q_heads) % kv_heads;
      const HeadRows& from = part == 0 ? args.q : part == 1 ? args.k : args.v;
      const bool rotates = part < 2 && pair < half;
      // Pairs that are not rotated are adjacent elements: all of V, and those of K behind the
      // rotary part.
      const int32_t first = rotates ? pair : part == 2 ? 2 * pair : half * 2 + 2 * (pair - half);
      const int32_t second = rotates ? pair + half : first + 1;
      const int64_t at = token * from.row_stride + static_cast<int64_t>(within) * head_dim;
      const float a = LoadElement(from.data, from.dtype, at + first);
      const float b = LoadElement(from.data, from.dtype, at + second);
      float x = a, y = b;
      if (rotates) {
        const float c = cosines[pair], s = cosines[pair + half];
        x = a * c - b * s;
        y = b * c + a * s;
      }
      void* to = part == 0 ? args.q_out.data : args.pages;
      const DType dtype = part == 0 ? args.q_out.dtype : args.page.dtype;
      const int64_t target =
          part == 0 ? token * args.q_out.row_stride + static_cast<int64_t>(within) * head_dim
                    : SlotOffset(args.page, slots[token], part - 1, within);
      StoreElement(x, to, dtype, target + first);
      StoreElement(y, to, dtype, target + second);
    }
  }
}

}  // namespace

cudaError_t PrepareAppend() {
  const cudaError_t error = Prepare(AppendVectorsKernel, kThreads, 0, nullptr);
  return error == cudaSuccess ? Prepare(AppendKernel, kThreads, 0, nullptr) : error;
}

cudaError_t Append(const AppendArgs& args, bool overlaps, cudaStream_t stream) {
  if (args.num_query_tokens == 0) return cudaSuccess;
  const bool reads_q = args.q_out.data != nullptr;
  const bool vectors = args.page.head_dim % kVector == 0 && args.rotary_dim / 2 % kVector == 0 &&
                       FitsVectors(args.k) && FitsVectors(args.v) &&
                       (!reads_q || (FitsVectors(args.q) && FitsVectors(args.q_out)));
  if (!vectors) {
    return LaunchOverlapping(overlaps, AppendKernel,
                             dim3(static_cast<unsigned>(args.num_query_tokens)), dim3(kThreads), 0,
                             stream, args);
  }
  constexpr int64_t kMostBlocks = 4096;
  const int64_t heads = (reads_q ? args.num_qo_heads : 0) + 2 * args.page.num_kv_heads;
  const int64_t units = args.num_query_tokens * heads * (args.page.head_dim / kVector);
  const auto blocks =
      static_cast<unsigned>(std::min(kMostBlocks, (units + kThreads - 1) / kThreads));
  return LaunchOverlapping(overlaps, AppendVectorsKernel, dim3(blocks), dim3(kThreads), 0, stream,
                           args);
}

}  // namespace kvctl::cuda
