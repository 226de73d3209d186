// Attention without tensor cores: correct for every type and head_dim, and slow. For float32
// caches, whose products tensor cores would round; and for shapes without a kernel of their own.
#include "kernels/cuda/attention/attention_tile.cuh"
#include "kernels/cuda/device/elements.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kMaxHeadDim = 256;
constexpr int kLanes = 32;
constexpr uint32_t kAll = 0xFFFFFFFFu;

/*! \brief A query of an item. A lane scores one key of a step, then sums some elements of v. Hidden
 * keys are neither read nor weighed. */
template <typename T>
class PlainQuery {
  static constexpr int kParts = kMaxHeadDim / kLanes;  // elements of v in a lane

 public:
  /*! \brief \param q [kMaxHeadDim] shared memory of the warp. */
  __device__ PlainQuery(const AttentionParams& params, const WorkItem& item, int32_t query,
                        float* q)
      : params_(params),
        item_(item),
        sequence_(PlanPart<PlanSequence>(params.plan, params.plan->sequences)[item.sequence]),
        pages_(static_cast<const T*>(params.pages)),
        q_(q),
        lane_(static_cast<int32_t>(threadIdx.x) % kLanes),
        query_(query),
        token_(item.token_begin + query / params.group),
        head_(item.kv_head * params.group + query % params.group) {}

  __device__ void Run() {
    const int64_t row = sequence_.query_begin + token_;
    const T* from = static_cast<const T*>(params_.q) + row * params_.q_row_stride +
                    static_cast<int64_t>(head_) * params_.page.head_dim;
    __syncwarp();  // an earlier query is read no more
    for (int32_t d = lane_; d < params_.page.head_dim; d += kLanes) q_[d] = ToFloat(from[d]);
    __syncwarp();
    if (params_.alibi_slopes != nullptr) {
      slope_ = params_.alibi_slopes[head_];
      const int32_t key = sequence_.kv_len - sequence_.num_query_tokens + token_;
      position_ = static_cast<float>(KeyPosition(params_.plan, sequence_, key));
    }
    TileCursor<kLanes> cursor(params_.plan, item_);
    while (cursor.Next()) Step(cursor);
    Finish();
  }

 private:
  __device__ void Step(const TileCursor<kLanes>& cursor) {
    uint64_t word = ~uint64_t{0};
    if (cursor.words >= 0) {
      word = PlanPart<uint64_t>(params_.plan,
                                params_.plan->words)[cursor.words + token_ % kBlockQueries];
    }
    const auto visible = static_cast<uint32_t>(cursor.Visible(word));
    if (visible == 0) return;  // the same for the whole warp
    int64_t offset = 0;
    float score = -INFINITY;
    if (visible >> lane_ & 1) {
      const int32_t key = cursor.first_key + lane_;
      offset = Offset(key);
      score = Score(offset, key);
    }
    float largest = score;
    for (int delta = kLanes / 2; delta > 0; delta /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, delta));
    }
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
      if ((visible >> i & 1) == 0) continue;
      const float weight = __shfl_sync(kAll, p, i);
      const T* v = pages_ + __shfl_sync(kAll, offset, i) + to_value;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int32_t d = part * kLanes + lane_;
        if (d < params_.page.head_dim) sums_[part] += weight * ToFloat(v[d]);
      }
    }
  }

  __device__ int64_t Offset(int32_t key) const {
    const int32_t page =
        PlanPart<int32_t>(params_.plan, sequence_.page_table)[key / params_.page.page_size];
    const int32_t slot = page * params_.page.page_size + key % params_.page.page_size;
    return SlotOffset(params_.page, slot, 0, item_.kv_head);
  }

  __device__ float Score(int64_t offset, int32_t key) const {
    constexpr int kSize = 16 / sizeof(T);  // of 16 bytes
    const T* k = pages_ + offset;
    float dot = 0;
    for (int32_t d = 0; d < params_.page.head_dim; d += kSize) {
      const uint4 words = *reinterpret_cast<const uint4*>(k + d);
      T part[kSize];
      memcpy(part, &words, sizeof(words));
#pragma unroll
      for (int i = 0; i < kSize; ++i) dot += q_[d + i] * ToFloat(part[i]);
    }
    float distance = 0;
    if (params_.alibi_slopes != nullptr) {
      distance = static_cast<float>(KeyPosition(params_.plan, sequence_, key)) - position_;
    }
    return Shape(dot, params_.sm_scale, params_.soft_cap, slope_, distance);
  }

  __device__ void Finish() {
    for (int delta = kLanes / 2; delta > 0; delta /= 2) l_ += __shfl_xor_sync(kAll, l_, delta);
    const QueryResult result(m_, l_, params_.sinks, head_);
    const int64_t partial = item_.partial + query_;
    const int64_t row = sequence_.query_begin + token_;
    const int64_t out =
        row * params_.out.row_stride + static_cast<int64_t>(head_) * params_.page.head_dim;
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
      params_.lse[row * params_.num_qo_heads + head_] = result.lse;
    }
  }

  const AttentionParams& params_;
  const WorkItem& item_;
  const PlanSequence sequence_;
  const T* pages_;
  float* q_;
  const int32_t lane_, query_, token_, head_;
  float slope_ = 0, position_ = 0;
  float m_ = -INFINITY, l_ = 0;  // l_: of this lane's keys
  float sums_[kParts] = {};
};

/*! \brief A warp per query. Without the bound, ptxas makes room for more blocks, and spills
 * registers.
 */
template <typename T>
__global__ void __launch_bounds__(kThreads, 4) PlainKernel(AttentionParams params) {
  KVCTL_DYNAMIC_SHARED(shared);
  if (params.plan->misfit != 0) return;
  const PlanClass work = ClassOf(params.plan, params.layer);
  const WorkItem* items = PlanPart<WorkItem>(params.plan, params.plan->items) + work.first_item;
  const auto* range = PlanPart<int32_t>(params.plan, params.plan->ranges) + work.first_range;
  const auto warp = static_cast<int32_t>(threadIdx.x) / kLanes;
  float* q = reinterpret_cast<float*>(shared) + warp * kMaxHeadDim;
  for (int32_t i = range[blockIdx.x]; i < range[blockIdx.x + 1]; ++i) {
    const WorkItem item = items[i];
    const int32_t queries = (item.token_end - item.token_begin) * params.group;
    for (int32_t query = warp; query < queries; query += kWarps) {
      PlainQuery<T>(params, item, query, q).Run();
    }
  }
}

using Kernel = void (*)(AttentionParams);

Kernel KernelOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return PlainKernel<Half>;
    case DType::kBFloat16:
      return PlainKernel<Bfloat>;
    default:
      return PlainKernel<float>;
  }
}

constexpr size_t kSharedBytes = sizeof(float) * kWarps * kMaxHeadDim;

}  // namespace

cudaError_t PreparePlain(DType dtype, AttentionOccupancy* occupancy) {
  int blocks = 0;
  const cudaError_t error = Prepare(KernelOf(dtype), kThreads, kSharedBytes, &blocks);
  *occupancy = {blocks, blocks, true};
  return error;
}

cudaError_t AttendPlain(const AttentionParams& params, const AttentionLaunch& launch,
                        cudaStream_t stream) {
  return Launch(KernelOf(params.page.dtype), dim3(static_cast<unsigned>(launch.num_blocks)),
                dim3(kThreads), kSharedBytes, stream, params);
}

}  // namespace kvctl::cuda
