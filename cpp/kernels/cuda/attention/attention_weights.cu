// What keys get of attention: AttentionMassCpu on a device. The scores are computed again.
#include "kernels/cuda/attention/attention_plain.cuh"

namespace kvctl::cuda {
namespace {

template <typename T>
class QueryWeights : public PlainQuery<T> {
  using PlainQuery<T>::params_;
  using PlainQuery<T>::item_;
  using PlainQuery<T>::lane_;

 public:
  using PlainQuery<T>::PlainQuery;

  __device__ void AddTo(const WeightSums& sums) {
    const int32_t first = this->sequence_.num_query_tokens - sums.last_queries;
    if (sums.last_queries > 0 && this->token_ < first) return;
    const float lse = params_.lse[this->row() * params_.num_qo_heads + this->head_] * kLog2E;
    const auto* sequences = PlanPart<PlanSequence>(params_.plan, params_.plan->sequences);
    int64_t keys = 0;  // of earlier sequences
    for (int32_t s = 0; s < this->index_; ++s) keys += sequences[s].kv_len;
    const int32_t head = sums.num_heads == params_.num_qo_heads ? this->head_ : item_.kv_head;
    TileCursor<kLanes> cursor(params_.plan, item_);
    while (cursor.Next()) {
      const int64_t offset = this->Offset(cursor);
      if (offset < 0) continue;
      const int32_t key = cursor.first_key + lane_;
      atomicAdd(sums.sums + (keys + key) * sums.num_heads + head,
                Exp2(this->Score(offset, key) - lse));
    }
  }
};

/*! \brief The bound is as PlainKernel's. */
template <typename T>
__global__ void __launch_bounds__(kThreads, 3)
    WeightsKernel(AttentionParams params, WeightSums sums) {
  KVCTL_DYNAMIC_SHARED(shared);
  if (params.plan->misfit != 0) return;
  ForQueries(
      params, shared,
      [&](const WorkItem& item, int32_t query, float* q) {
        QueryWeights<T>(params, item, query, q).AddTo(sums);
      },
      [](const WorkItem&) {});
}

using Kernel = void (*)(AttentionParams, WeightSums);

Kernel KernelOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return WeightsKernel<Half>;
    case DType::kBFloat16:
      return WeightsKernel<Bfloat>;
    case DType::kFloat8:
      return WeightsKernel<Float8>;
    default:
      return WeightsKernel<float>;
  }
}

}  // namespace

cudaError_t PrepareWeights(DType dtype) {
  return Prepare(KernelOf(dtype), kThreads, kPlainSharedBytes, nullptr);
}

cudaError_t SumWeights(const AttentionParams& params, const AttentionLaunch& launch,
                       const WeightSums& sums, cudaStream_t stream) {
  return Launch(KernelOf(params.page.dtype), dim3(static_cast<unsigned>(launch.num_blocks)),
                dim3(kThreads), kPlainSharedBytes, stream, params, sums);
}

}  // namespace kvctl::cuda
