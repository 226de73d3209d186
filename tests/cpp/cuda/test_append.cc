#include <cstring>
#include <random>

#include "check.h"
#include "device_array.h"
#include "kernels/convert.h"
#include "kernels/cuda/device/device_plan.h"
#include "kernels/cuda/kv_copy/append.cuh"
#include "kernels/rope.h"

namespace kvctl {
namespace {

constexpr int32_t kQoHeads = 4, kKvHeads = 2, kHeadDim = 48, kPageSize = 4, kPages = 12;

std::vector<uint8_t> Convert(const std::vector<float>& values, DType dtype) {
  std::vector<uint8_t> bytes(values.size() * DTypeSize(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kFloat32) reinterpret_cast<float*>(bytes.data())[i] = values[i];
    if (dtype == DType::kFloat16) {
      FromFloat(values[i], reinterpret_cast<Float16*>(bytes.data()) + i);
    }
    if (dtype == DType::kBFloat16) {
      FromFloat(values[i], reinterpret_cast<BFloat16*>(bytes.data()) + i);
    }
  }
  return bytes;
}

float At(const std::vector<uint8_t>& bytes, DType dtype, int64_t i) {
  if (dtype == DType::kFloat16) return ToFloat(reinterpret_cast<const Float16*>(bytes.data())[i]);
  if (dtype == DType::kBFloat16) return ToFloat(reinterpret_cast<const BFloat16*>(bytes.data())[i]);
  return reinterpret_cast<const float*>(bytes.data())[i];
}

/*! \brief Whether two arrays are equal within an ulp of the type, with NaN at the same places. */
bool Close(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, DType dtype) {
  const float ulp = dtype == DType::kFloat32 ? 1e-6f : dtype == DType::kFloat16 ? 1e-3f : 8e-3f;
  for (size_t i = 0; i < a.size() / DTypeSize(dtype); ++i) {
    const float x = At(a, dtype, i), y = At(b, dtype, i);
    if (std::isnan(x) != std::isnan(y)) return false;
    if (std::fabs(x - y) > ulp * std::max(0.1f, std::fabs(x))) return false;
  }
  return true;
}

void CheckAppend(DType input, DType cache, int32_t rotary_dim, bool keep_q, std::mt19937* rng) {
  const int32_t rows = 5, width = (kQoHeads + 2 * kKvHeads) * kHeadDim;
  std::normal_distribution<float> normal;
  std::vector<float> values(rows * width);
  for (float& value : values) value = normal(*rng);
  const std::vector<uint8_t> fused = Convert(values, input);
  const PageShape page{kKvHeads, kPageSize, kHeadDim, cache};
  StepPlan step;
  step.slots = {9, 10, 40, 3, 22};
  step.positions = {100, 101, 7, 0, 3000};
  RopeParams params;
  params.rotary_dim = rotary_dim > 0 ? rotary_dim : 2;
  RopeTable table(params);
  table.Fill(step.positions.data(), rows);

  // On the CPU, in float32 until it is stored.
  std::vector<float> rotated(values);
  for (size_t i = 0; i < values.size(); ++i) rotated[i] = At(fused, input, i);
  if (rotary_dim > 0) {
    RopeCpu(table, DType::kFloat32, kQoHeads + kKvHeads, kHeadDim, rotated.data(), width,
            rotated.data(), width);
  }
  std::vector<uint8_t> pages(kPages * page.num_bytes(), 0xFF);
  float* k = rotated.data() + kQoHeads * kHeadDim;
  WriteSlotsCpu(page, pages.data(), step.slots.data(), rows, {k, DType::kFloat32, width},
                {k + kKvHeads * kHeadDim, DType::kFloat32, width});

  cuda::DevicePlanBuilder builder(
      {1, kKvHeads, kQoHeads / kKvHeads, kPageSize, {2, 2, 2}, 0, rotary_dim});
  MaskTable masks;
  masks.Lower(nullptr, step, 1, kKvHeads);
  builder.Build(step, masks, rotary_dim > 0 ? table.row(0) : nullptr);
  const DeviceArray<uint64_t> arena(builder.arena());
  const DeviceArray<uint8_t> qkv(fused), device_pages(kPages * page.num_bytes());
  const DeviceArray<uint8_t> q_out(rows * kQoHeads * kHeadDim * DTypeSize(cache));
  cuda::AppendArgs args{};
  args.plan = reinterpret_cast<const cuda::PlanHeader*>(arena.data());
  args.num_query_tokens = rows;
  args.item_shape = builder.item_shape();
  const int64_t element = DTypeSize(input);
  args.q = {qkv.data(), input, width};
  args.k = {qkv.data() + kQoHeads * kHeadDim * element, input, width};
  args.v = {qkv.data() + (kQoHeads + kKvHeads) * kHeadDim * element, input, width};
  args.num_qo_heads = kQoHeads;
  args.q_out = {keep_q ? nullptr : q_out.data(), cache, kQoHeads * kHeadDim};
  args.page = page;
  args.pages = device_pages.data();
  args.rotary_dim = rotary_dim;
  Must(cuda::Append(args, true, nullptr));
  EXPECT(Close(device_pages.Read(), pages, cache));
  std::vector<float> q;
  for (int32_t row = 0; row < rows; ++row) {
    const float* from = rotated.data() + row * width;
    q.insert(q.end(), from, from + kQoHeads * kHeadDim);
  }
  if (keep_q) {
    for (uint8_t byte : q_out.Read()) EXPECT_EQ(int{byte}, 0xFF);
  } else {
    EXPECT(Close(q_out.Read(), Convert(q, cache), cache));
  }
}

}  // namespace

TEST(CudaAppendRotatesConvertsAndWritesAsTheCpuDoes) {
  std::mt19937 rng(5);
  InEveryOrder([&] {
    for (const DType input : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
      for (const DType cache : {DType::kFloat16, DType::kBFloat16}) {
        // 20: halves that are no vectors.
        for (const int32_t rotary_dim : {0, 16, 20, kHeadDim}) {
          CheckAppend(input, cache, rotary_dim, false, &rng);
        }
      }
    }
    CheckAppend(DType::kFloat16, DType::kFloat16, 0, true, &rng);
  });
}

}  // namespace kvctl
