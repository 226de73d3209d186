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

/*! \brief Divides by a scale and rounds. Returns how many elements the largest one holds back. */
__device__ int32_t StoreFloat8(const Vector& vector, void* data, int64_t index, float scale) {
  Float8 rounded[kVector];
  int32_t saturated = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) saturated += RoundToFloat8(vector.at[i] / scale, rounded + i);
  uint64_t bytes;
  memcpy(&bytes, rounded, sizeof(bytes));
  *reinterpret_cast<uint64_t*>(static_cast<Float8*>(data) + index) = bytes;
  return saturated;
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
      args.plan->item_shape == args.item_shape &&
      (!args.plan->has_sinks || args.q_at_sinks.data != nullptr)) {
    return true;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    const_cast<PlanHeader*>(args.plan)->misfit = 1;
    *args.misfit = 1;
  }
  return false;
}

enum Part { kQ, kK, kV, kSinkQ };

/*! \brief The heads of a token: those of q, K and V, then those of q at sinks. */
struct Heads {
  __device__ explicit Heads(const AppendArgs& args)
      : q(args.q_out.data == nullptr ? 0 : args.num_qo_heads),
        kv(args.page.num_kv_heads),
        total(q + 2 * kv + (args.plan->has_sinks ? args.num_qo_heads : 0)) {}
  __device__ Part PartOf(int32_t head) const {
    return head < q ? kQ : head < q + kv ? kK : head < q + 2 * kv ? kV : kSinkQ;
  }
  /*! \brief The head's index in its part. */
  __device__ int32_t Within(int32_t head, Part part) const {
    return head - (part == kQ ? 0 : part == kK ? q : part == kV ? q + kv : q + 2 * kv);
  }

  const int32_t q, kv, total;
};

/*! \brief Where a head comes from and goes to, in elements. */
struct HeadMove {
  __device__ HeadMove(const AppendArgs& args, const Heads& heads, int32_t token, int32_t head,
                      const int32_t* slots)
      : part(heads.PartOf(head)) {
    const int32_t within = heads.Within(head, part);
    const int64_t first = static_cast<int64_t>(within) * args.page.head_dim;
    from = part == kQ ? args.q : part == kK ? args.k : part == kV ? args.v : args.sink_q;
    source = token * from.row_stride + first;
    if (part == kK || part == kV) {
      to = args.pages;
      dtype = args.page.dtype;
      target = SlotOffset(args.page, slots[token], part == kV, within);
      if (dtype == DType::kFloat8) scale = ScaleOf(args.float8, heads.kv, part == kV, within);
    } else {
      const HeadRows& rows = part == kQ ? args.q_out : args.q_at_sinks;
      to = rows.data;
      dtype = rows.dtype;
      target = token * rows.row_stride + first;
    }
  }

  __device__ void Store(const AppendArgs& args, const Vector& vector, int32_t first) const {
    if (dtype == DType::kFloat8) {
      CountSaturated(args.float8, StoreFloat8(vector, to, target + first, scale));
    } else {
      StoreVector(vector, to, dtype, target + first);
    }
  }

  const Part part;
  HeadRows from;
  int64_t source, target;
  void* to;
  DType dtype;
  float scale = 1;  // with kFloat8
};

/*! \brief Cosines, then sines, of a token and part. */
__device__ const float* Angles(const AppendArgs& args, Part part, int32_t token) {
  const int32_t table = part == kSinkQ ? args.plan->sink_rope : args.plan->rope;
  return reinterpret_cast<const float*>(reinterpret_cast<const char*>(args.plan) + table) +
         static_cast<int64_t>(token) * args.rotary_dim;
}

/*! \brief A thread processes one vector of a head, or the two that are rotated with each other. */
__global__ void __launch_bounds__(kThreads) AppendVectorsKernel(AppendArgs args) {
  WaitForPrevious();
  LetNextCome();
  if (!Fits(args)) return;
  const char* base = reinterpret_cast<const char*>(args.plan);
  const auto* slots = reinterpret_cast<const int32_t*>(base + args.plan->slots);
  const int32_t vectors = args.page.head_dim / kVector, half = args.rotary_dim / 2;
  const Heads heads(args);
  const int32_t units = args.plan->num_query_tokens * heads.total * vectors;
  const auto step = static_cast<int32_t>(gridDim.x * blockDim.x);
  for (auto unit = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x); unit < units;
       unit += step) {
    const int32_t first = unit % vectors * kVector, row = unit / vectors;
    const int32_t token = row / heads.total;
    const HeadMove move(args, heads, token, row % heads.total, slots);
    const bool rotates = move.part != kV;
    if (rotates && first >= half && first < 2 * half) continue;  // done with its other half
    Vector a = LoadVector(move.from.data, move.from.dtype, move.source + first);
    if (!rotates || first >= half) {
      move.Store(args, a, first);
      continue;
    }
    Vector b = LoadVector(move.from.data, move.from.dtype, move.source + first + half);
    const float* cosines = Angles(args, move.part, token) + first;
    const Vector c = LoadVector(cosines, DType::kFloat32, 0);
    const Vector s = LoadVector(cosines + half, DType::kFloat32, 0);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float x = a.at[i], y = b.at[i];
      a.at[i] = x * c.at[i] - y * s.at[i];
      b.at[i] = y * c.at[i] + x * s.at[i];
    }
    move.Store(args, a, first);
    move.Store(args, b, first + half);
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
  const int32_t pairs = args.page.head_dim / 2, half = args.rotary_dim / 2;
  const Heads heads(args);
  for (int32_t token = blockIdx.x; token < args.plan->num_query_tokens; token += gridDim.x) {
    for (int32_t i = threadIdx.x; i < heads.total * pairs; i += blockDim.x) {
      const int32_t pair = i % pairs;
      const HeadMove move(args, heads, token, i / pairs, slots);
      const bool rotates = move.part != kV && pair < half;
      // Pairs that are not rotated are adjacent elements: all of V, and those of K behind the
      // rotary part.
      const int32_t first = rotates           ? pair
                            : move.part == kV ? 2 * pair
                                              : half * 2 + 2 * (pair - half);
      const int32_t second = rotates ? pair + half : first + 1;
      const float a = LoadElement(move.from.data, move.from.dtype, move.source + first);
      const float b = LoadElement(move.from.data, move.from.dtype, move.source + second);
      float x = a, y = b;
      if (rotates) {
        const float* cosines = Angles(args, move.part, token);
        const float c = cosines[pair], s = cosines[pair + half];
        x = a * c - b * s;
        y = b * c + a * s;
      }
      if (move.dtype == DType::kFloat8) {
        x /= move.scale;
        y /= move.scale;
      }
      CountSaturated(args.float8, StoreInPages(x, move.to, move.dtype, move.target + first) +
                                      StoreInPages(y, move.to, move.dtype, move.target + second));
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
                       (!reads_q || (FitsVectors(args.q) && FitsVectors(args.q_out))) &&
                       (args.q_at_sinks.data == nullptr || FitsVectors(args.sink_q));
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
