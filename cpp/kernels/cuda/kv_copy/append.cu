#include "kernels/cuda/device/elements.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/kv_copy/append.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kThreads = 128;

/*! \brief A block per token; a thread processes pairs of elements of the heads of q, k and v. */
__global__ void AppendKernel(AppendArgs args) {
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

cudaError_t PrepareAppend() { return Prepare(AppendKernel, kThreads, 0, nullptr); }

cudaError_t Append(const AppendArgs& args, cudaStream_t stream) {
  if (args.num_query_tokens == 0) return cudaSuccess;
  return Launch(AppendKernel, dim3(static_cast<unsigned>(args.num_query_tokens)), dim3(kThreads), 0,
                stream, args);
}

}  // namespace kvctl::cuda
