#include <cmath>

#include "core/sampling/cut.h"
#include "kernels/cuda/device/elements.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/verify/verify.cuh"

namespace kvctl::cuda {
namespace {

constexpr int kThreads = 256;

/*! \brief The entries of a list by token whose tokens are in [begin, end). */
template <typename Entry>
class Entries {
 public:
  __device__ Entries(const char* arena, PlanList list, int32_t begin, int32_t end)
      : entries_(reinterpret_cast<const Entry*>(arena + list.at)),
        first_(Before(list.size, begin)),
        last_(Before(list.size, end)) {}

  __device__ int32_t first() const { return first_; }
  __device__ int32_t last() const { return last_; }
  __device__ const Entry& operator[](int32_t i) const { return entries_[i]; }
  __device__ bool Has(int32_t token) const {
    const int32_t at = Before(last_, token);
    return at < last_ && entries_[at].token == token;
  }

 private:
  /*! \brief How many of the first n tokens are less. */
  __device__ int32_t Before(int32_t n, int32_t token) const {
    int32_t low = 0;
    while (low < n) {
      const int32_t middle = (low + n) / 2;
      if (entries_[middle].token < token) {
        low = middle + 1;
      } else {
        n = middle;
      }
    }
    return low;
  }

  const Entry* entries_;
  const int32_t first_, last_;
};

/*! \brief LogitRow::Piece. A block per (row, kVocabBlock of its tokens), which it holds in shared
 * memory. */
__global__ void __launch_bounds__(kThreads, 4) ProcessRowsKernel(VerifyParams params) {
  KVCTL_DYNAMIC_SHARED(shared);
  LetNextCome();
  auto* logits = reinterpret_cast<float*>(shared);
  const char* arena = reinterpret_cast<const char*>(params.plan);
  const RowHeader& rows = params.plan->rows;
  const ProcessedRow row =
      reinterpret_cast<const ProcessedRow*>(arena + rows.processed)[blockIdx.x];
  const RowProcessing& processing =
      reinterpret_cast<const RowProcessing*>(arena + rows.processing)[row.processing];
  const int32_t begin = static_cast<int32_t>(blockIdx.y) * kVocabBlock;
  const int32_t end = min(begin + kVocabBlock, params.vocab_size);
  const auto thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t x = begin + thread; x < end; x += kThreads) {
    logits[x - begin] = LoadElement(row.values, row.type, x);
  }
  __syncthreads();
  const Entries<TokenBias> bias(arena, processing.bias, begin, end);
  for (int32_t i = bias.first() + thread; i < bias.last(); i += kThreads) {
    const int32_t token = bias[i].token;
    if (i > bias.first() && bias[i - 1].token == token) continue;  // added with the first
    for (int32_t j = i; j < bias.last() && bias[j].token == token; ++j) {
      logits[token - begin] += bias[j].bias;
    }
  }
  __syncthreads();
  const Entries<TokenCount> counts(arena, processing.counts, begin, end);
  const Entries<TokenCount> path(arena, row.counts, begin, end);
  for (int32_t i = counts.first() + thread; i < counts.last(); i += kThreads) {
    const TokenCount seen = counts[i];
    if (path.Has(seen.token)) continue;
    float& logit = logits[seen.token - begin];
    logit = Penalize(logit, seen.count, processing.penalties);
  }
  for (int32_t i = path.first() + thread; i < path.last(); i += kThreads) {
    float& logit = logits[path[i].token - begin];
    logit = Penalize(logit, path[i].count, processing.penalties);
  }
  __syncthreads();
  const auto* bits = reinterpret_cast<const uint32_t*>(arena + row.bitmask);  // if not negative
  float* out = params.scratch + static_cast<int64_t>(row.scratch_row) * params.vocab_size;
  for (int32_t x = begin + thread; x < end; x += kThreads) {
    const bool allowed = row.bitmask < 0 || (bits[x / 32] >> (x % 32) & 1u) != 0;
    out[x] = allowed ? logits[x - begin] : -INFINITY;
  }
}

}  // namespace

cudaError_t ProcessRows(const VerifyParams& params, cudaStream_t stream) {
  if (params.num_processed == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((params.vocab_size + kVocabBlock - 1) / kVocabBlock);
  return Launch(ProcessRowsKernel, dim3(static_cast<unsigned>(params.num_processed), blocks),
                dim3(kThreads), sizeof(float) * kVocabBlock, stream, params);
}

}  // namespace kvctl::cuda
