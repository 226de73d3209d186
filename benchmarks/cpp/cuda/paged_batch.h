/*!
 * \file benchmarks/cpp/cuda/paged_batch.h
 * \brief A batch over random pages of several layers, and its attention in float64.
 */
#ifndef KVCTL_BENCHMARKS_CUDA_PAGED_BATCH_H_
#define KVCTL_BENCHMARKS_CUDA_PAGED_BATCH_H_

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "core/mask/mask_plan.h"
#include "device.h"
#include "kernels/convert.h"
#include "kernels/cuda/cache_device.h"
#include "kernels/cuda/device/float8.cuh"

namespace kvctl_bench {

/*! \brief Keys of a sequence, sequences, and new tokens of each. */
struct BatchShape {
  int32_t kv, batch, queries;
  int32_t shared = 0;   //!< keys on the same pages in all sequences: a multiple of the page size
  bool float8 = false;  //!< pages of 8-bit floats instead of float16
};

constexpr int32_t kKVHeads = 8, kGroup = 4, kHeadDim = 128, kPageSize = 16;
constexpr int64_t kQOHeads = kKVHeads * kGroup;
constexpr int64_t kTokenElements = int64_t{2} * kKVHeads * kHeadDim;

/*! \brief Random float16 numbers from -1 to 1. */
inline std::vector<uint16_t> RandomHalves(size_t count, std::mt19937* rng) {
  std::vector<uint16_t> halves(count);
  std::uniform_real_distribution<float> uniform(-1.f, 1.f);
  for (uint16_t& one : halves) {
    kvctl::FromFloat(uniform(*rng), reinterpret_cast<kvctl::Float16*>(&one));
  }
  return halves;
}

/*! \brief Random 8-bit floats from -2 to 2, two in each number. */
inline std::vector<uint16_t> RandomFloat8s(size_t count, std::mt19937* rng) {
  std::vector<uint16_t> pairs(count);
  for (uint16_t& one : pairs) one = static_cast<uint16_t>((*rng)() & 0xbfbf);
  return pairs;
}

inline double HalfAt(const std::vector<uint16_t>& halves, size_t at) {
  return kvctl::ToFloat(reinterpret_cast<const kvctl::Float16&>(halves[at]));
}

/*! \brief What 8-bit floats of a head are multiplied by: no power of two, other ones for all. */
inline float Float8Scale(int32_t part, int32_t head) {
  return 0.3f + 0.05f * static_cast<float>(part * kKVHeads + head);
}

/*!
 * \brief Chains of new tokens behind random pages, on the device and, for the reference, on the
 * host.
 *
 * All pages repeat one random block, so that the host need not hold gigabytes. Layers are as many
 * as it takes to read more than four times the L2 cache before a layer comes back.
 */
class PagedBatch {
 public:
  /*!
   * \param block Elements of the pages: RandomHalves or RandomFloat8s.
   * \param shares Whether what the sequences share is read once.
   */
  PagedBatch(const BatchShape& shape, const std::vector<uint16_t>& block, size_t l2_bytes,
             bool shares = true)
      : shape_(shape), block_(block), rng_(shape.kv + shape.batch * 1000003u + shape.queries) {
    const int32_t pages_each = (shape.kv + kPageSize - 1) / kPageSize;
    const int32_t shared_pages = shape.shared / kPageSize;
    const int32_t num_pages = shared_pages + (pages_each - shared_pages) * shape.batch;
    const size_t bytes = size_t(num_pages) * kPageSize * TokenBytes();
    num_layers_ = static_cast<int32_t>(4 * l2_bytes / bytes) + 1;
    pages_.resize(num_pages);
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), rng_);
    for (int32_t s = 0; s < shape.batch; ++s) {  // the page table of each
      const auto own = pages_.begin() + shared_pages + s * (pages_each - shared_pages);
      tables_.emplace_back(pages_.begin(), pages_.begin() + shared_pages);
      tables_.back().insert(tables_.back().end(), own, own + pages_each - shared_pages);
    }
    for (int32_t s = 0; s < shape.batch; ++s) {
      kvctl::SequencePlan plan{};
      plan.query_begin = s * shape.queries;
      plan.num_query_tokens = plan.num_pending = shape.queries;
      plan.num_committed = plan.next_position = shape.kv - shape.queries;
      plan.pages = tables_[s].data();
      for (int32_t i = 0; i < shape.queries; ++i) {
        const int32_t key = plan.num_committed + i;
        step_.slots.push_back(plan.pages[key / kPageSize] * kPageSize + key % kPageSize);
        step_.positions.push_back(key);
      }
      step_.sequences.push_back(plan);
    }
    masks_.Lower(nullptr, step_, num_layers_, kKVHeads);
    kvctl::CudaCacheConfig config{};
    config.page = {kKVHeads, kPageSize, kHeadDim,
                   shape.float8 ? kvctl::DType::kFloat8 : kvctl::DType::kFloat16};
    config.num_layers = num_layers_;
    for (int32_t i = 0; shape.float8 && i < num_layers_ * 2 * kKVHeads; ++i) {
      config.kv_scales.push_back(Float8Scale(i / kKVHeads % 2, i % kKVHeads));
    }
    config.num_qo_heads = kQOHeads;
    config.num_pages = num_pages;
    config.max_query_tokens = step_.num_query_tokens();
    config.shares_prefixes = shares;
    for (int32_t layer = 0; layer < num_layers_; ++layer) {
      layers_.emplace_back(bytes);
      layers_.back().Repeat(block);
      config.pages.push_back(layers_.back().data());
    }
    cache_.reset(kvctl::cuda::CreateCache(config));
    q_ = RandomHalves(step_.num_query_tokens() * kQOHeads * kHeadDim, &rng_);
    k_ = RandomHalves(step_.num_query_tokens() * int64_t{kKVHeads} * kHeadDim, &rng_);
    v_ = RandomHalves(k_.size(), &rng_);
    device_q_ = std::make_unique<DeviceMemory>(q_.data(), q_.size() * 2);
    device_k_ = std::make_unique<DeviceMemory>(k_.data(), k_.size() * 2);
    device_v_ = std::make_unique<DeviceMemory>(v_.data(), v_.size() * 2);
    out_ = std::make_unique<DeviceMemory>(q_.size() * 2);
    const DeviceMemory positions(step_.num_query_tokens() * sizeof(int32_t));
    std::vector<int64_t> seq_ids(shape.batch);
    std::iota(seq_ids.begin(), seq_ids.end(), 0);
    cache_->BeginStep({step_, seq_ids.data(), masks_, nullptr,
                       reinterpret_cast<int32_t*>(positions.data()), nullptr, true},
                      nullptr);
    Must(cudaStreamSynchronize(nullptr));
  }

  int32_t num_layers() const { return num_layers_; }
  /*! \brief Bytes of K and V that attention needs in a layer, each once. */
  double LayerBytes() const {
    const double own = double(shape_.kv - shape_.shared) * shape_.batch;
    return (shape_.shared + own) * double(TokenBytes());
  }

  void Append(cudaStream_t stream) {
    for (int32_t layer = 0; layer < num_layers_; ++layer) {
      cache_->Append(layer, Rows(*device_k_, kKVHeads), Rows(*device_v_, kKVHeads), stream);
    }
  }
  /*! \brief Appends and attends in every layer. */
  void Attend(cudaStream_t stream) {
    for (int32_t layer = 0; layer < num_layers_; ++layer) {
      kvctl::CudaAttention call{};
      call.layer = layer;
      call.q = Rows(*device_q_, kQOHeads);
      call.k = Rows(*device_k_, kKVHeads);
      call.v = Rows(*device_v_, kKVHeads);
      call.out = Rows(*out_, kQOHeads);
      call.sm_scale = 1.f / std::sqrt(float(kHeadDim));
      cache_->Attend(call, stream);
    }
  }

  /*! \brief The largest difference from float64 among some random queries and heads; NaN where an
   * output was not written. */
  double Error(int32_t samples) {
    out_->Poison();
    Attend(nullptr);
    const std::vector<uint16_t> out = out_->Read<uint16_t>();
    double worst = 0;
    for (uint16_t one : out) {
      const double value = kvctl::ToFloat(reinterpret_cast<const kvctl::Float16&>(one));
      if (!std::isfinite(value)) return value - value;
    }
    for (int32_t i = 0; i < samples; ++i) {
      const auto query = static_cast<int32_t>(rng_() % step_.num_query_tokens());
      const auto head = static_cast<int32_t>(rng_() % kQOHeads);
      const std::vector<double> expected = Reference(query, head);
      for (int32_t d = 0; d < kHeadDim; ++d) {
        const double got = HalfAt(out, (query * kQOHeads + head) * kHeadDim + d);
        worst = std::max(worst, std::fabs(got - expected[d]));
      }
    }
    return worst;
  }

 private:
  /*! \brief K and V of a token in a layer. */
  int64_t TokenBytes() const { return kTokenElements * (shape_.float8 ? 1 : 2); }

  static kvctl::KVRows Rows(const DeviceMemory& memory, int64_t heads) {
    return {memory.data(), kvctl::DType::kFloat16, heads * kHeadDim};
  }

  /*! \brief softmax(q K^T) V of one query and head, in float64. */
  std::vector<double> Reference(int32_t query, int32_t head) const {
    const kvctl::SequencePlan& plan = step_.sequences[query / shape_.queries];
    const int32_t own = query % shape_.queries, keys = plan.num_committed + own + 1;
    const int32_t kv_head = head / kGroup;
    std::vector<double> scores(keys), out(kHeadDim);
    const double scale = 1.0 / std::sqrt(double(kHeadDim));
    double most = -1e300, total = 0;
    for (int32_t key = 0; key < keys; ++key) {
      for (int32_t d = 0; d < kHeadDim; ++d) {
        scores[key] +=
            HalfAt(q_, (query * kQOHeads + head) * kHeadDim + d) * At(plan, key, 0, kv_head, d);
      }
      scores[key] *= scale;
      most = std::max(most, scores[key]);
    }
    for (double& score : scores) total += score = std::exp(score - most);
    for (int32_t key = 0; key < keys; ++key) {
      for (int32_t d = 0; d < kHeadDim; ++d) {
        out[d] += scores[key] / total * At(plan, key, 1, kv_head, d);
      }
    }
    return out;
  }
  /*! \brief K (part 0) or V (part 1) of a key. */
  double At(const kvctl::SequencePlan& plan, int32_t key, int32_t part, int32_t head,
            int32_t d) const {
    if (key >= plan.num_committed) {
      const int64_t row = plan.query_begin + key - plan.num_committed;
      const double value = HalfAt(part == 0 ? k_ : v_, (row * kKVHeads + head) * kHeadDim + d);
      if (!shape_.float8) return value;
      kvctl::cuda::Float8 rounded;
      const float scale = Float8Scale(part, head);
      kvctl::cuda::RoundToFloat8(static_cast<float>(value) / scale, &rounded);
      return double{scale} * kvctl::cuda::ToFloat(rounded);
    }
    const int64_t page = plan.pages[key / kPageSize];
    const int64_t element =
        (((page * 2 + part) * kKVHeads + head) * kPageSize + key % kPageSize) * kHeadDim + d;
    if (!shape_.float8) return HalfAt(block_, element % block_.size());
    const uint16_t pair = block_[element / 2 % block_.size()];
    const kvctl::cuda::Float8 one{static_cast<uint8_t>(pair >> element % 2 * 8)};
    return double{Float8Scale(part, head)} * kvctl::cuda::ToFloat(one);
  }

  const BatchShape shape_;
  const std::vector<uint16_t>& block_;
  std::mt19937 rng_;
  int32_t num_layers_;
  std::vector<int32_t> pages_;
  std::vector<std::vector<int32_t>> tables_;
  kvctl::StepPlan step_;
  kvctl::MaskTable masks_;
  std::vector<DeviceMemory> layers_;
  std::vector<uint16_t> q_, k_, v_;
  std::unique_ptr<DeviceMemory> device_q_, device_k_, device_v_, out_;
  std::unique_ptr<kvctl::CudaCache> cache_;
};

}  // namespace kvctl_bench

#endif  // KVCTL_BENCHMARKS_CUDA_PAGED_BATCH_H_
