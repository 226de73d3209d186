// Pages of 8-bit floats on a device, against the definition of their elements.
#include <cmath>
#include <random>

#include "check.h"
#include "cuda_attention.h"
#include "device_array.h"
#include "kernels/cuda/device/device_plan.h"
#include "kernels/cuda/device/float8.cuh"
#include "kernels/cuda/kv_copy/append.cuh"
#include "kernels/cuda/kv_copy/slots.cuh"

namespace kvctl {
namespace {

constexpr uint8_t kNaN = 0x7f;

/*! \brief The value of an element, as the specification defines it. */
double ValueOf(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if ((bits & 0x7f) == kNaN) return NAN;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return bits & 0x80 ? -magnitude : magnitude;
}

/*! \brief The nearest element, of two the one whose last bit is 0. */
uint8_t Nearest(double value) {
  if (!std::isfinite(value)) return kNaN | (std::signbit(value) ? 0x80 : 0);
  uint8_t best = 0;
  for (uint8_t bits = 1; bits < kNaN; ++bits) {
    const double distance = std::fabs(std::fabs(value) - ValueOf(bits));
    const double before = std::fabs(std::fabs(value) - ValueOf(best));
    if (distance < before || (distance == before && bits % 2 == 0)) best = bits;
  }
  return best | (std::signbit(value) ? 0x80 : 0);
}

/*! \brief Halfway to the element that would come after the largest. */
constexpr double kMost = 464;

/*! \brief Rounds a layer's K and V to elements times the scales of their heads. Returns the bytes
 * of such pages; the layer, of float32, gets their values. */
std::vector<uint8_t> Quantize(PagedLayer* layer, const std::vector<float>& scales) {
  const Shape& shape = layer->shape;
  auto* values = reinterpret_cast<float*>(layer->data.data());
  std::vector<uint8_t> bytes(layer->data.size() / sizeof(float));
  for (size_t i = 0; i < bytes.size(); ++i) {
    const size_t head = i / shape.head_dim / shape.page_size % (2 * shape.kv_heads);
    if (std::isnan(values[i])) {
      bytes[i] = 0xff;
      continue;
    }
    bytes[i] = Nearest(values[i] / scales[head]);
    values[i] = static_cast<float>(ValueOf(bytes[i]) * scales[head]);
  }
  return bytes;
}

/*! \brief Scales of other magnitudes for K and V, and for each head. */
std::vector<float> SomeScales(int32_t kv_heads) {
  std::vector<float> scales;
  for (int32_t i = 0; i < 2 * kv_heads; ++i) scales.push_back(0.003f * static_cast<float>(i + 1));
  return scales;
}

double Float8Error(const Shape& shape, int32_t past, int32_t queries, bool plain,
                   Options options = {}) {
  PagedLayer layer(shape, DType::kFloat32, (past + queries) / shape.page_size + 4, 7);
  const TestSequence sequence(&layer, past, RandomTree(&layer.rng, queries), queries, queries);
  options.scales = SomeScales(shape.kv_heads);
  const std::vector<uint8_t> bytes = Quantize(&layer, options.scales);
  options.float8 = &bytes;
  options.plain = plain;
  return ErrorOf(&layer, sequence, nullptr, options);
}

}  // namespace

TEST(CudaFloat8ElementsAreThoseOfTheSpecification) {
  for (int bits = 0; bits < 256; ++bits) {
    const auto value = static_cast<float>(ValueOf(static_cast<uint8_t>(bits)));
    const float got = cuda::ToFloat(cuda::Float8{static_cast<uint8_t>(bits)});
    EXPECT(std::isnan(value) ? std::isnan(got) : got == value);
    EXPECT_EQ(std::signbit(got), bits >= 128);
  }
}

TEST(CudaFloat8RoundsToNearestEvenAndSaysWhatIsTooLarge) {
  std::vector<float> values = {0.f, -0.f, 448.f, 463.9f, 464.f, 464.1f, 1e30f, INFINITY, NAN};
  for (int bits = 0; bits < 127; ++bits) {
    const double here = ValueOf(static_cast<uint8_t>(bits));
    const double next = bits == 126 ? 480 : ValueOf(static_cast<uint8_t>(bits + 1));
    const auto middle = static_cast<float>((here + next) / 2);
    for (const float value : {static_cast<float>(here), middle}) {
      values.insert(values.end(), {value, std::nextafter(value, 0.f), std::nextafter(value, 1e9f)});
    }
  }
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 2000; ++i) values.push_back(normal(rng) * std::exp(3 * normal(rng)));
  for (const float magnitude : values) {
    for (const float value : {magnitude, -magnitude}) {
      cuda::Float8 got;
      const bool saturates = cuda::RoundToFloat8(value, &got);
      EXPECT_EQ(saturates, std::isfinite(value) && std::fabs(value) > kMost);
      EXPECT_EQ(int{got.bits}, int{Nearest(value)});
    }
  }
}

TEST(CudaFloat8PairsOfHalvesAreTheElements) {
  for (int bits = 0; bits < 256; ++bits) {
    const auto other = static_cast<uint8_t>(bits * 37 + 11);
    const uint32_t bytes = static_cast<uint32_t>(bits) | uint32_t{other} << 8 |
                           static_cast<uint32_t>(255 - bits) << 16 | uint32_t{3} << 24;
    const cuda::HalfPairs pairs = cuda::ToHalves(bytes);
    const auto check = [&](uint32_t half, int byte) {
      const auto want = static_cast<float>(ValueOf(static_cast<uint8_t>(byte)));
      const float got =
          ToFloat(Float16{static_cast<uint16_t>(half & 0xffff)}) * cuda::kHalvesFactor;
      EXPECT(std::isnan(want) ? std::isnan(got) : got == want);
    };
    check(pairs.even, bits);
    check(pairs.even >> 16, 255 - bits);
    check(pairs.odd, other);
    check(pairs.odd >> 16, 3);
  }
}

TEST(CudaFloat8AttentionAgreesWithFloat64OfTheValues) {
  InEveryOrder([&] {
    for (const Shape shape : {Shape{8, 2, 64, 16}, Shape{4, 4, 128, 8}, Shape{6, 1, 64, 5}}) {
      for (const auto& [past, queries] : {std::pair{0, 1}, {0, 70}, {63, 2}, {150, 17}}) {
        EXPECT(Float8Error(shape, past, queries, false) < 1);
      }
    }
  });
}

TEST(CudaFloat8AttentionCutAlongTheKeysAgreesWithFloat64) {
  Options options;
  for (const Shape shape : {Shape{4, 1, 64, 16}, Shape{8, 1, 128, 32}}) {
    for (const auto& [past, queries] : {std::pair{1300, 1}, {1100, 9}}) {
      for (const int32_t blocks : {2, 40}) {
        for (const int32_t stages : {2, 3}) {
          options.num_blocks = blocks;
          options.num_stages = stages;
          EXPECT(Float8Error(shape, past, queries, false, options) < 1);
        }
      }
    }
  }
}

TEST(CudaFloat8AttentionOfOtherHeadDimsIsPlainAndAgreesWithFloat64) {
  for (const Shape shape : {Shape{4, 2, 16, 16}, Shape{4, 2, 112, 16}, Shape{2, 1, 256, 4}}) {
    for (const auto& [past, queries] : {std::pair{40, 30}, {330, 3}}) {
      EXPECT(Float8Error(shape, past, queries, true) < 1);
    }
  }
}

TEST(CudaFloat8AttentionWithOptionsAgreesWithFloat64) {
  const std::vector<float> slopes = {0.5f, 0.25f, 0.125f, 0.01f, 0.f, 1.f};
  const std::vector<float> sinks = {0.f, 3.f, -40.f, 40.f, 1.f, -1.f};
  for (const int32_t head_dim : {64, 112}) {
    const Shape shape{6, 2, head_dim, 16};
    Options options;
    options.num_blocks = 9;
    options.args.sm_scale = 0.2f;
    options.args.soft_cap = 5.f;
    EXPECT(Float8Error(shape, 180, 9, head_dim != 64, options) < 1);
    options.args.alibi_slopes = slopes.data();
    options.args.sinks = sinks.data();
    EXPECT(Float8Error(shape, 180, 9, head_dim != 64, options) < 1);
  }
}

TEST(CudaFloat8AttentionWithTheScalesOfOtherHeadsDoesNotAgree) {
  const Shape shape{8, 2, 64, 16};
  PagedLayer layer(shape, DType::kFloat32, 20, 7);
  const TestSequence sequence(&layer, 150, {}, 3, 3);
  Options options;
  options.scales = SomeScales(2);
  const std::vector<uint8_t> bytes = Quantize(&layer, options.scales);
  options.float8 = &bytes;
  EXPECT(ErrorOf(&layer, sequence, nullptr, options) < 1);
  for (const size_t first : {0, 2}) {  // K's, then V's
    std::swap(options.scales[first], options.scales[first + 1]);
    EXPECT(ErrorOf(&layer, sequence, nullptr, options) > 10);
    std::swap(options.scales[first], options.scales[first + 1]);
  }
}

TEST(CudaFloat8NaNIsSeenWhereItIsVisible) {
  const Shape shape{2, 1, 64, 16};
  for (const int part : {0, 1}) {
    PagedLayer layer(shape, DType::kFloat32, 8, 7);
    const TestSequence sequence(&layer, 40, {}, 2, 2);
    Options options;
    options.scales = {1.f, 1.f};
    std::vector<uint8_t> bytes = Quantize(&layer, options.scales);
    bytes[((sequence.pages[1] * 2 + part) * 16 + 3) * 64 + 9] = kNaN;
    options.float8 = &bytes;
    std::vector<TestSequence> batch{sequence};
    const std::vector<float> q = Rounded(DType::kFloat16, layer.Random(2 * 2 * 64));
    const Output output = AttendCuda(layer, batch, {nullptr}, q, options);
    EXPECT(std::isnan(output.out[9]));
  }
}

TEST(CudaFloat8AppendDividesByTheScaleAndCountsWhatIsTooLarge) {
  constexpr int32_t kRows = 5, kQoHeads = 4, kHeads = 2, kPageSize = 4, kPages = 12;
  std::mt19937 rng(5);
  std::normal_distribution<float> normal;
  InEveryOrder([&] {
    for (const int32_t head_dim : {48, 64}) {
      for (const int32_t stride_pad : {0, 3}) {  // 3: rows that are no vectors
        const int32_t width = (kQoHeads + 2 * kHeads) * head_dim + stride_pad;
        std::vector<float> qkv(kRows * width);
        for (float& value : qkv) value = normal(rng);
        qkv[4 * head_dim + 1] = -1e4f;                                     // K of the first row
        qkv[width + 6 * head_dim] = qkv[width + 6 * head_dim + 7] = 3e5f;  // V of the second
        qkv[2 * width + 7 * head_dim] = INFINITY;
        const std::vector<float> scales = {0.5f, 0.01f, 0.3f, 2.f};
        StepPlan step;
        step.slots = {9, 10, 40, 3, 22};
        step.positions = {0, 1, 2, 3, 4};
        cuda::DevicePlanBuilder builder({1, kHeads, 2, kPageSize, {2, 2, 2}, 0, 0});
        MaskTable masks;
        masks.Lower(nullptr, step, 1, kHeads);
        builder.Build(step, masks, nullptr);
        const PageShape page{kHeads, kPageSize, head_dim, DType::kFloat8};
        const DeviceArray<uint64_t> arena(builder.arena());
        const DeviceArray<float> device(qkv), device_scales(scales);
        const DeviceArray<uint8_t> pages(kPages * page.num_bytes());
        const DeviceArray<unsigned long long> count(std::vector<unsigned long long>{0});
        const DeviceArray<uint16_t> q_out(kRows * kQoHeads * head_dim);
        cuda::AppendArgs args{};
        args.plan = reinterpret_cast<const cuda::PlanHeader*>(arena.data());
        args.num_query_tokens = kRows;
        args.item_shape = builder.item_shape();
        args.q = {device.data(), DType::kFloat32, width};
        args.k = {device.data() + kQoHeads * head_dim, DType::kFloat32, width};
        args.v = {device.data() + (kQoHeads + kHeads) * head_dim, DType::kFloat32, width};
        args.num_qo_heads = kQoHeads;
        args.q_out = {q_out.data(), DType::kFloat16, kQoHeads * head_dim};
        args.page = page;
        args.pages = pages.data();
        args.float8 = {device_scales.data(), count.data()};
        Must(cuda::Append(args, true, nullptr));
        std::vector<uint8_t> want(kPages * page.num_bytes(), 0xff);
        for (int32_t row = 0; row < kRows; ++row) {
          for (int32_t i = 0; i < 2 * kHeads * head_dim; ++i) {
            const int32_t head = i / head_dim;
            const float value = qkv[row * width + kQoHeads * head_dim + i];
            want[page.Offset(step.slots[row], head / kHeads, head % kHeads) + i % head_dim] =
                Nearest(value / scales[head]);
          }
        }
        EXPECT(pages.Read() == want);
        EXPECT_EQ(count.Read()[0], 3u);
      }
    }
  });
}

TEST(CudaFloat8SlotsAreReadAndWrittenAsValuesAndAsBytes) {
  const PageShape shape{2, 4, 32, DType::kFloat8};
  const std::vector<int32_t> slots = {5, 30, 31, 0, 17};
  const std::vector<float> scales = {0.5f, 0.01f, 0.3f, 2.f};
  const int64_t width = 2 * 32;
  std::mt19937 rng(4);
  std::normal_distribution<float> normal;
  std::vector<float> k(slots.size() * width), v(k.size());
  for (float& value : k) value = normal(rng);
  for (float& value : v) value = normal(rng);
  InEveryOrder([&] {
    const DeviceArray<uint8_t> pages(9 * shape.num_bytes()), others(9 * shape.num_bytes());
    const DeviceArray<int32_t> device_slots(slots);
    const DeviceArray<float> dk(k), dv(v), device_scales(scales);
    const DeviceArray<unsigned long long> count(std::vector<unsigned long long>{0});
    const cuda::Float8Scales float8{device_scales.data(), count.data()};
    const auto rows = static_cast<int64_t>(slots.size());
    Must(cuda::WriteSlots(shape, pages.data(), device_slots.data(), rows,
                          {dk.data(), DType::kFloat32, width}, {dv.data(), DType::kFloat32, width},
                          float8, nullptr));
    const DeviceArray<float> read_k(k.size()), read_v(v.size());
    Must(cuda::ReadSlots(shape, pages.data(), device_slots.data(), rows,
                         {read_k.data(), DType::kFloat32, width},
                         {read_v.data(), DType::kFloat32, width}, float8, nullptr));
    const std::vector<float> got_k = read_k.Read(), got_v = read_v.Read();
    for (size_t i = 0; i < k.size(); ++i) {
      const size_t head = i / 32 % 2;
      EXPECT_EQ(got_k[i], static_cast<float>(ValueOf(Nearest(k[i] / scales[head]))) * scales[head]);
      EXPECT_EQ(got_v[i],
                static_cast<float>(ValueOf(Nearest(v[i] / scales[head + 2]))) * scales[head + 2]);
    }
    EXPECT_EQ(count.Read()[0], 0u);
    const DeviceArray<uint8_t> bytes_k(k.size()), bytes_v(v.size());
    const KVRows rows_k{bytes_k.data(), DType::kFloat8, width};
    const KVRows rows_v{bytes_v.data(), DType::kFloat8, width};
    Must(cuda::ReadSlots(shape, pages.data(), device_slots.data(), rows, rows_k, rows_v, float8,
                         nullptr));
    Must(cuda::WriteSlots(shape, others.data(), device_slots.data(), rows, rows_k, rows_v, float8,
                          nullptr));
    EXPECT(pages.Read() == others.Read());
    Must(cuda::PoisonSlots(shape, pages.data(), device_slots.data(), 1, nullptr));
    const std::vector<uint8_t> poisoned = pages.Read();
    EXPECT(std::isnan(ValueOf(poisoned[shape.Offset(slots[0], 1, 1) + 31])));
    EXPECT(poisoned[shape.Offset(slots[1], 1, 1) + 31] != 0xff);
  });
}

}  // namespace kvctl
