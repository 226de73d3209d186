// Attention without tensor cores: correct for every type and head_dim, and slow. For float32
// caches, whose products tensor cores would round; for shapes without a kernel of their own; and
// where heads see pages of their own.
#include "kernels/cuda/attention/attention_merge.cuh"
#include "kernels/cuda/attention/attention_plain.cuh"

namespace kvctl::cuda {
namespace {

/*! \brief A query's attention. A lane scores one key of a step, then sums some elements of v. */
template <typename T>
class PlainAttention : public PlainQuery<T> {
  static constexpr int kParts = kMaxHeadDim / kLanes;  // elements of v in a lane
  using PlainQuery<T>::params_;
  using PlainQuery<T>::item_;
  using PlainQuery<T>::lane_;
  using PlainQuery<T>::head_;

 public:
  using PlainQuery<T>::PlainQuery;

  __device__ void Run() {
    TileCursor<kLanes> cursor(params_.plan, item_);
    while (cursor.Next()) Step(cursor);
    Finish();
  }

 private:
  __device__ void Step(const TileCursor<kLanes>& cursor) {
    const int64_t offset = this->Offset(cursor);
    float score = -INFINITY;
    if (offset >= 0) score = this->Score(offset, cursor.first_key + lane_);
    float largest = score;
    for (int delta = kLanes / 2; delta > 0; delta /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, delta));
    }
    if (largest == -INFINITY) return;  // the same for the whole warp
    largest = fmaxf(largest, m_);
    const float shrink = Weight(m_, largest), p = Weight(score, largest);
    m_ = largest;
    l_ = l_ * shrink + p;
#pragma unroll
    for (float& sum : sums_) sum *= shrink;
    const int64_t to_value = static_cast<int64_t>(params_.page.num_kv_heads) *
                             params_.page.page_size * params_.page.head_dim;
#pragma unroll 2
    for (int i = 0; i < kLanes; ++i) {
      const float weight = __shfl_sync(kWholeWarp, p, i);
      const int64_t at = __shfl_sync(kWholeWarp, offset, i);
      if (at < 0) continue;
      const T* v = this->pages_ + at + to_value;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int32_t d = part * kLanes + lane_;
        if (d < params_.page.head_dim) sums_[part] += weight * ToFloat(v[d]);
      }
    }
  }

  __device__ void Finish() {
    for (int delta = kLanes / 2; delta > 0; delta /= 2) {
      l_ += __shfl_xor_sync(kWholeWarp, l_, delta);
    }
    const QueryResult result(m_, l_, params_.sinks, head_);
    if constexpr (sizeof(T) == 1) {
#pragma unroll
      for (float& sum : sums_) sum *= this->Factor(1);
    }
    const int64_t partial =
        item_.partial < 0 ? -1 : PartialOf(params_.plan, item_, params_.group, this->query_);
    const int64_t out =
        this->row() * params_.out.row_stride + static_cast<int64_t>(head_) * params_.page.head_dim;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int32_t d = part * kLanes + lane_;
      if (d >= params_.page.head_dim) continue;
      if (item_.partial >= 0) {
        params_.partials.sums[partial * params_.page.head_dim + d] = sums_[part];
      } else {
        StoreElement(sums_[part] * result.factor, params_.out.data, params_.out.dtype, out + d);
      }
    }
    if (lane_ != 0) return;
    if (item_.partial >= 0) {
      params_.partials.scale[partial] = float2{m_, l_};
    } else if (params_.lse != nullptr) {
      params_.lse[this->row() * params_.num_qo_heads + head_] = result.lse;
    }
  }

  float m_ = -INFINITY, l_ = 0;  // l_: of this lane's keys
  float sums_[kParts] = {};
};

/*! \brief Without the bound, ptxas makes room for more blocks, and spills registers. */
template <typename T>
__global__ void __launch_bounds__(kThreads, 3) PlainKernel(AttentionParams params) {
  KVCTL_DYNAMIC_SHARED(shared);
  WaitForPrevious();
  LetNextCome();
  if (params.plan->misfit != 0) return;
  auto* flags = reinterpret_cast<uint32_t*>(shared + kPlainSharedBytes);
  ForQueries(
      params, shared,
      [&](const WorkItem& item, int32_t query, float* q) {
        PlainAttention<T>(params, item, query, q).Run();
      },
      [&](const WorkItem& item) {
        if (item.partial >= 0) MergeWhereLast<kAnyHeadDim>(params, item, flags);
      });
}

using Kernel = void (*)(AttentionParams);

Kernel KernelOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return PlainKernel<Half>;
    case DType::kBFloat16:
      return PlainKernel<Bfloat>;
    case DType::kFloat8:
      return PlainKernel<Float8>;
    default:
      return PlainKernel<float>;
  }
}

constexpr size_t kSharedBytes = kPlainSharedBytes + 2 * sizeof(uint32_t);

}  // namespace

cudaError_t PreparePlain(DType dtype, AttentionOccupancy* occupancy) {
  int blocks = 0;
  const cudaError_t error = Prepare(KernelOf(dtype), kThreads, kSharedBytes, &blocks);
  if (occupancy != nullptr) *occupancy = {{{blocks, 0}, {blocks, 0}, {blocks, 0}}, 0, true};
  return error;
}

cudaError_t AttendPlain(const AttentionParams& params, const AttentionLaunch& launch,
                        cudaStream_t stream) {
  return LaunchOverlapping(launch.overlaps, KernelOf(params.page.dtype),
                           dim3(static_cast<unsigned>(launch.num_blocks)), dim3(kThreads),
                           kSharedBytes, stream, params);
}

}  // namespace kvctl::cuda
