#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "kvctl/paged_kv_cache.h"

namespace kvctl {
namespace {

using tvm::runtime::Tensor;

constexpr int64_t kHeads = 2, kHeadDim = 16, kChunk = 8;

PagedKVCache MakeCache(RopeMode mode) {
  PagedKVCacheConfig config;
  config.num_layers = 1;
  config.num_qo_heads = config.num_kv_heads = kHeads;
  config.head_dim = kHeadDim;
  config.page_size = 4;
  config.num_pages = 16;
  config.prefill_chunk_size = kChunk;
  config.rope_mode = mode;
  PagedKVCache cache = PagedKVCache::Create(config);
  cache->AddSequence(0);
  return cache;
}

Tensor Make(std::initializer_list<int64_t> shape) {
  return Tensor::Empty(tvm::ffi::Shape(shape), DLDataType{kDLFloat, 32, 1}, DLDevice{kDLCPU, 0});
}

float* Data(const Tensor& tensor) { return static_cast<float*>(tensor->data); }

/*! \brief Some number for element d of head h of token t. */
float Value(int64_t t, int64_t h, int64_t d) { return std::sin(float(31 * t + 7 * h + 3 * d)); }

/*! \brief Appends tokens whose K and V are Value, or zeros, and returns what the last one sees. */
std::vector<float> Append(const PagedKVCache& cache, int64_t begin, int64_t end, bool zeros) {
  std::vector<float> last;
  for (; begin < end; begin += std::min(kChunk, end - begin)) {
    const int64_t count = std::min(kChunk, end - begin);
    Tensor qkv = Make({count, 3 * kHeads, kHeadDim}), out = Make({count, kHeads, kHeadDim});
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t h = 0; h < 3 * kHeads; ++h) {
        for (int64_t d = 0; d < kHeadDim; ++d) {
          const bool zero = zeros && h >= kHeads;
          Data(qkv)[(t * 3 * kHeads + h) * kHeadDim + d] = zero ? 0 : Value(begin + t, h, d);
        }
      }
    }
    cache->BeginForward({0}, {count});
    cache->Attention(0, qkv, out, 0.25, {});
    cache->EndForward();
    const float* row = Data(out) + (count - 1) * kHeads * kHeadDim;
    last.assign(row, row + kHeads * kHeadDim);
  }
  return last;
}

}  // namespace

TEST(InlineRopeRotatesKeysThatAreSetWhereTheyLie) {
  // More of them than the prefill chunk, not from the start.
  const int64_t begin = 3, end = 24;
  const PagedKVCache normal = MakeCache(RopeMode::kNormal), set = MakeCache(RopeMode::kInline);
  Append(normal, 0, end, false);
  Append(set, 0, begin, false);
  Append(set, begin, end, true);
  Tensor k = Make({1, end - begin, kHeads, kHeadDim}), v = Make({1, end - begin, kHeads, kHeadDim});
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t d = 0; d < kHeadDim; ++d) {
        const int64_t at = ((t - begin) * kHeads + h) * kHeadDim + d;
        Data(k)[at] = Value(t, kHeads + h, d);
        Data(v)[at] = Value(t, 2 * kHeads + h, d);
      }
    }
  }
  const std::vector<float> expected = Append(normal, end, end + 1, false);
  set->DebugSetKV(0, begin, k, v);
  EXPECT(Append(set, end, end + 1, false) == expected);

  Tensor k_again = Make({1, end - begin, kHeads, kHeadDim});
  set->DebugGetKV(0, begin, end, k_again, v);
  EXPECT(std::memcmp(Data(k), Data(k_again), k.Shape().Product() * sizeof(float)) == 0);

  // The negative control: another key is noticed.
  Data(k)[0] += 1;
  set->PopN(0, 1);
  set->DebugSetKV(0, begin, k, v);
  EXPECT(Append(set, end, end + 1, false) != expected);
}

}  // namespace kvctl
