#include "kernels/cuda/attention/attention_tile.cuh"
#include "kernels/cuda/device/elements.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace kvctl::cuda {
namespace {

/*! \brief A warp per query; partial results are added in the order of keys. */
__global__ void MergeKernel(AttentionParams params) {
  const PlanHeader* plan = params.plan;
  const PlanClass work = ClassOf(plan, params.layer);
  const MergeItem* merges = PlanPart<MergeItem>(plan, plan->merges) + work.first_merge;
  const int32_t lane = threadIdx.x % 32, head_dim = params.page.head_dim;
  const int32_t num_warps = gridDim.x * kWarps;
  for (int32_t unit = blockIdx.x * kWarps + threadIdx.x / 32;
       unit < work.num_merges * kMaxItemQueries; unit += num_warps) {
    const MergeItem& merge = merges[unit / kMaxItemQueries];
    const int32_t query = unit % kMaxItemQueries;
    const int32_t queries = (merge.token_end - merge.token_begin) * params.group;
    if (query >= queries) continue;
    const auto at = [&](int32_t piece) {
      return static_cast<int64_t>(merge.partial) + static_cast<int64_t>(piece) * queries + query;
    };
    float m = -INFINITY, l = 0;
    for (int32_t i = 0; i < merge.num_partials; ++i) m = fmaxf(m, params.partials.scale[at(i)].x);
    for (int32_t i = 0; i < merge.num_partials; ++i) {
      const float2 scale = params.partials.scale[at(i)];
      l += scale.y * Weight(scale.x, m);
    }
    const PlanSequence& sequence = PlanPart<PlanSequence>(plan, plan->sequences)[merge.sequence];
    const int64_t token = sequence.query_begin + merge.token_begin + query / params.group;
    const int32_t head = merge.kv_head * params.group + query % params.group;
    const QueryResult result(m, l, params.sinks, head);
    for (int32_t d = lane; d < head_dim; d += 32) {
      float sum = 0;
      for (int32_t i = 0; i < merge.num_partials; ++i) {
        sum +=
            params.partials.sums[at(i) * head_dim + d] * Weight(params.partials.scale[at(i)].x, m);
      }
      StoreElement(sum * result.factor, params.out.data, params.out.dtype,
                   token * params.out.row_stride + static_cast<int64_t>(head) * head_dim + d);
    }
    if (lane == 0 && params.lse != nullptr) {
      params.lse[token * params.num_qo_heads + head] = result.lse;
    }
  }
}

}  // namespace

cudaError_t PrepareMerge() { return Prepare(MergeKernel, kThreads, 0, nullptr); }

cudaError_t MergePartials(const AttentionParams& params, int32_t num_blocks, cudaStream_t stream) {
  return Launch(MergeKernel, dim3(static_cast<unsigned>(num_blocks)), dim3(kThreads), 0, stream,
                params);
}

}  // namespace kvctl::cuda
