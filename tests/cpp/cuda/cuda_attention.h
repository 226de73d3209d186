/*!
 * \file cuda_attention.h
 * \brief The attention kernels on a small paged cache, as a test calls them.
 */
#ifndef KVCTL_TESTS_CUDA_CUDA_ATTENTION_H_
#define KVCTL_TESTS_CUDA_CUDA_ATTENTION_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "../kernels/attention/attention_case.h"
#include "check.h"
#include "device_array.h"
#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/device/device_plan.h"

namespace kvctl {

/*! \brief The options of a test beside shapes and masks. */
struct Options {
  AttentionArgs args;      //!< scale, soft cap; slopes and sinks on the host
  int32_t num_blocks = 3;  //!< few: long loops over items; many: split along the keys
  DType out = DType::kFloat32;
  size_t shared_bytes = 227 * 1024;  //!< that a block may have
  bool plain = false;                //!< whether the kernel without tensor cores is expected
  const std::vector<std::vector<int32_t>>* head_pages = nullptr;  //!< [sequences, KV heads]
  bool head_pages_plain = false;  //!< whether the plain kernel takes them
  AttentionMass mass;             //!< num_heads 0: no sums
  int32_t num_stages = 3;
  int32_t least_shape = 0;  //!< of items, which is expected on a device with that shared memory
  bool shares = true;       //!< whether prefixes that sequences share are read once
  const std::vector<uint8_t>* float8 = nullptr;  //!< pages of 8-bit floats, which the layer's are
  std::vector<float> scales;                     //!< [2, KV heads] theirs
};

/*! \brief The type of q for the kernels. */
inline DType QueryType(const PagedLayer& layer, const Options& options) {
  return options.float8 == nullptr ? layer.dtype : DType::kFloat16;
}

struct Output {
  std::vector<float> out, lse, mass;
  int64_t tiles = 0;  //!< of keys, that all items read together
};

/*! \brief q rounded to a type, for the kernel and the reference alike. */
inline std::vector<float> Rounded(DType dtype, std::vector<float> q) {
  for (float& x : q) {
    if (dtype == DType::kFloat16) {
      Float16 half;
      FromFloat(x, &half);
      x = ToFloat(half);
    } else if (dtype == DType::kBFloat16) {
      BFloat16 bfloat;
      FromFloat(x, &bfloat);
      x = ToFloat(bfloat);
    }
  }
  return q;
}
inline std::vector<float> Rounded(const PagedLayer& layer, std::vector<float> q) {
  return Rounded(layer.dtype, std::move(q));
}

inline Output AttendCuda(const PagedLayer& layer, std::vector<TestSequence>& sequences,
                         const std::vector<const Mask*>& masks, const std::vector<float>& q,
                         const Options& options) {
  StepPlan step;
  for (TestSequence& sequence : sequences) {
    sequence.plan.query_begin = step.num_query_tokens();
    step.slots.resize(step.num_query_tokens() + sequence.plan.num_query_tokens);
    step.sequences.push_back(sequence.plan);
  }
  step.positions.resize(step.num_query_tokens());
  const Shape& shape = layer.shape;
  MaskTable table;
  table.Lower(masks.empty() ? nullptr : masks.data(), step, 1, shape.kv_heads);
  const int32_t group = shape.qo_heads / shape.kv_heads, max_partial_queries = 4096;
  cuda::DevicePlanBuilder builder({1,
                                   shape.kv_heads,
                                   group,
                                   shape.page_size,
                                   {options.num_blocks, options.num_blocks, options.num_blocks},
                                   max_partial_queries,
                                   0,
                                   options.shares,
                                   options.least_shape});
  builder.Build(step, table, nullptr);

  const DType query_type = QueryType(layer, options);
  std::vector<uint8_t> typed(q.size() * DTypeSize(query_type));
  for (size_t i = 0; i < q.size(); ++i) {
    if (query_type == DType::kFloat16) {
      FromFloat(q[i], reinterpret_cast<Float16*>(typed.data()) + i);
    } else if (query_type == DType::kBFloat16) {
      FromFloat(q[i], reinterpret_cast<BFloat16*>(typed.data()) + i);
    } else {
      reinterpret_cast<float*>(typed.data())[i] = q[i];
    }
  }
  const std::vector<float> none;
  const auto per_head = [&](const float* values) {
    return values == nullptr ? none : std::vector<float>(values, values + shape.qo_heads);
  };
  const DeviceArray<uint64_t> arena(builder.arena());
  const DeviceArray<uint8_t> device_q(typed);
  const bool eight = options.float8 != nullptr;
  const DeviceArray<uint8_t> pages(eight ? *options.float8 : layer.data);
  const DeviceArray<uint8_t> out(q.size() * DTypeSize(options.out));
  const DeviceArray<float> sums(int64_t{max_partial_queries} * shape.head_dim);
  const DeviceArray<float> scale(2 * max_partial_queries),
      lse(step.num_query_tokens() * shape.qo_heads);
  const DeviceArray<float> slopes(per_head(options.args.alibi_slopes));
  const DeviceArray<float> sinks(per_head(options.args.sinks));
  cuda::AttentionParams params{};
  params.plan = reinterpret_cast<const cuda::PlanHeader*>(arena.data());
  params.q = device_q.data();
  params.q_row_stride = int64_t{shape.qo_heads} * shape.head_dim;
  params.num_qo_heads = shape.qo_heads;
  params.group = group;
  params.page = {shape.kv_heads, shape.page_size, shape.head_dim,
                 eight ? DType::kFloat8 : layer.dtype};
  const DeviceArray<float> scales(options.scales);
  if (eight) params.float8 = {scales.data(), nullptr};
  params.pages = pages.data();
  params.out = {out.data(), options.out, params.q_row_stride};
  params.sm_scale =
      options.args.sm_scale == 0 ? 1.f / std::sqrt(float(shape.head_dim)) : options.args.sm_scale;
  params.soft_cap = options.args.soft_cap;
  params.alibi_slopes = options.args.alibi_slopes == nullptr ? nullptr : slopes.data();
  params.sinks = options.args.sinks == nullptr ? nullptr : sinks.data();
  params.lse = lse.data();
  params.partials = {sums.data(), reinterpret_cast<float2*>(scale.data())};
  std::vector<int32_t> tables;
  if (options.head_pages != nullptr) {
    tables.resize(options.head_pages->size());
    for (size_t i = 0; i < options.head_pages->size(); ++i) {
      const std::vector<int32_t>& own = (*options.head_pages)[i];
      tables[i] = static_cast<int32_t>(tables.size());
      tables.insert(tables.end(), own.begin(), own.end());
    }
  }
  const DeviceArray<int32_t> head_pages(tables);
  if (options.head_pages != nullptr) params.head_pages = head_pages.data();
  cuda::AttentionOccupancy occupancy;
  Must(cuda::PrepareAttention(params.page, options.shared_bytes, &occupancy));
  EXPECT_EQ(occupancy.plain, options.plain);
  EXPECT_EQ(occupancy.least_shape, options.least_shape);
  occupancy.plain |= options.head_pages_plain;
  const int32_t shape_of_items = builder.item_shape();
  const int32_t stages =
      options.plain ? 0 : std::min(options.num_stages, occupancy.shapes[shape_of_items].stages);
  const cuda::AttentionLaunch launch{occupancy.plain, shape_of_items, options.num_blocks, stages,
                                     true};
  Must(cuda::PreparePlain(params.page.dtype, nullptr));
  Must(cuda::Attention(params, launch, nullptr));
  const std::vector<uint64_t> after = arena.Read();  // as before: another layer may use the plan
  EXPECT(after == builder.arena());
  int64_t keys = 0;
  for (const SequencePlan& sequence : step.sequences) keys += sequence.kv_len();
  const DeviceArray<float> mass(std::vector<float>(keys * options.mass.num_heads, 0.f));
  if (options.mass.num_heads > 0) {
    const cuda::WeightSums weights{mass.data(), options.mass.num_heads, options.mass.last_queries};
    Must(cuda::SumWeights(params, launch, weights, nullptr));
  }

  Output result;
  const auto* items = reinterpret_cast<const cuda::WorkItem*>(
      reinterpret_cast<const char*>(builder.arena().data()) + builder.header().items);
  for (int32_t i = 0; i < builder.num_items(); ++i) {
    result.tiles += items[i].tile_end - items[i].tile_begin;
  }
  const std::vector<uint8_t> bytes = out.Read();
  for (size_t i = 0; i < q.size(); ++i) {
    if (options.out == DType::kFloat32) {
      result.out.push_back(reinterpret_cast<const float*>(bytes.data())[i]);
    } else if (options.out == DType::kFloat16) {
      result.out.push_back(ToFloat(reinterpret_cast<const Float16*>(bytes.data())[i]));
    } else {
      result.out.push_back(ToFloat(reinterpret_cast<const BFloat16*>(bytes.data())[i]));
    }
  }
  result.lse = lse.Read();
  result.mass = mass.Read();
  return result;
}

inline double Bound(DType dtype) {
  return dtype == DType::kFloat32 ? 2e-6 : dtype == DType::kFloat16 ? 2e-3 : 1e-2;
}

/*! \brief The error of the kernel against float64 for one sequence, relative to the type's bound:
 * below 1 passes. */
inline double ErrorOf(PagedLayer* layer, const TestSequence& sequence, const Mask* mask,
                      const Options& options = {}) {
  const std::vector<float> q = Rounded(
      QueryType(*layer, options), layer->Random(int64_t(sequence.plan.num_query_tokens) *
                                                layer->shape.qo_heads * layer->shape.head_dim));
  std::vector<TestSequence> batch{sequence};
  const Output output = AttendCuda(*layer, batch, {mask}, q, options);
  MaskPlan plan;
  LowerMask(mask, sequence.plan, &plan);
  const DType rougher = options.out == DType::kBFloat16 ? options.out : QueryType(*layer, options);
  return RelativeError(output.out, Reference(*layer, sequence, plan, q.data(), options.args)) /
         Bound(rougher);
}

}  // namespace kvctl

#endif  // KVCTL_TESTS_CUDA_CUDA_ATTENTION_H_
