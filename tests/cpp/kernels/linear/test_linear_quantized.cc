#include <omp.h>

#include <cmath>

#include "check.h"
#include "kept_weight.h"
#include "kernels/convert.h"
#include "kernels/quantized_blocks.h"
#include "packed_weight.h"

using namespace kvctl;

namespace {

constexpr WeightType kTypes[] = {WeightType::kInt8, WeightType::kInt4};
constexpr int64_t kQuantizedShapes[][2] = {{1, 32},   {3, 64},   {31, 96},  {32, 128},
                                           {33, 288}, {96, 320}, {64, 256}, {200, 32}};

/*! \brief The weights of blocks, in the order of their inputs. */
std::vector<float> Dequantized(const std::vector<uint8_t>& blocks, WeightType type) {
  const size_t size = static_cast<size_t>(BlockBytes(type));
  std::vector<float> weights;
  for (size_t at = 0; at < blocks.size(); at += size) {
    Float16 scale;
    std::memcpy(&scale, &blocks[at], sizeof(scale));
    for (size_t i = 0; i < 32; ++i) {
      int q;
      if (type == WeightType::kInt8) {
        q = static_cast<int8_t>(blocks[at + 2 + i]);
      } else {
        q = (blocks[at + 2 + i % 16] >> (i < 16 ? 0 : 4) & 15) - 8;
      }
      weights.push_back(ToFloat(scale) * static_cast<float>(q));
    }
  }
  return weights;
}

std::vector<uint8_t> Quantized(const std::vector<float>& weights, WeightType type) {
  std::vector<uint8_t> blocks(weights.size() / 32 * static_cast<size_t>(BlockBytes(type)));
  QuantizeBlocks(weights.data(), static_cast<int64_t>(weights.size()), type, blocks.data());
  return blocks;
}

}  // namespace

TEST(AWeightIsRoundedToItsBlocksScale) {
  for (WeightType type : kTypes) {
    const std::vector<float> plain = Input(8, 64);
    const std::vector<float> rounded = Dequantized(Quantized(plain, type), type);
    for (size_t begin = 0; begin < plain.size(); begin += 32) {
      float largest = 0;
      for (size_t i = begin; i < begin + 32; ++i) largest = std::max(largest, std::abs(plain[i]));
      // Half a step to nearest, a whole one for a positive weight as large as the negative -8.
      const float step = type == WeightType::kInt8 ? largest / 127 : largest / 8;
      for (size_t i = begin; i < begin + 32; ++i) {
        const float allowed = type == WeightType::kInt8 ? 0.5f : 1.0f;
        EXPECT(std::abs(rounded[i] - plain[i]) <= (allowed + 0.07f) * step);
      }
    }
  }
}

TEST(WeightsThatWereQuantizedBeforeAreNotRoundedAgain) {
  // Whatever the largest integer of a block is, and though 8 bits hold what had 4.
  std::mt19937 random(5);
  for (WeightType type : kTypes) {
    for (int largest = 1; largest <= (type == WeightType::kInt8 ? 127 : 8); ++largest) {
      std::vector<float> weights(32);
      Float16 half;
      FromFloat(std::ldexp(1.0f + static_cast<float>(random() % 1000) / 999.0f, -9), &half);
      const float scale = ToFloat(half);
      for (float& w : weights) {
        const int q = static_cast<int>(random() % (2 * largest + 1)) - largest;
        w = scale * static_cast<float>(type == WeightType::kInt4 && q > 7 ? 7 : q);
      }
      weights[9] = -scale * static_cast<float>(largest);
      EXPECT(Dequantized(Quantized(weights, type), type) == weights);
      EXPECT(Dequantized(Quantized(weights, WeightType::kInt8), WeightType::kInt8) == weights);
    }
  }
  const std::vector<float> zero(64, 0.0f);
  for (WeightType type : kTypes) EXPECT(Dequantized(Quantized(zero, type), type) == zero);
}

TEST(TheLeastByteIsKeptToo) {
  // GGUF's Q8_0 has -128 where another program than llama.cpp wrote it.
  std::mt19937 random(7);
  for (float scale : {0.25f, -0.25f, 1.0f / 512}) {
    Weight weight(3, 32, WeightType::kInt8);
    for (float& w : weight.plain) {
      w = scale * static_cast<float>(static_cast<int>(random() % 255) - 127);
    }
    for (size_t b = 0; b < weight.plain.size(); b += 32) weight.plain[b + 5] = -128 * scale;
    EXPECT(Dequantized(Quantized(weight.plain, WeightType::kInt8), WeightType::kInt8) ==
           weight.plain);
    PackLinear(weight.plain.data(), 3, 32, WeightType::kInt8, LinearBackend::kOwn, weight.packed);
    std::vector<float> x(17 * 32);
    for (size_t i = 0; i < x.size(); ++i) x[i] = i % 32 == 5 ? 127.0f : float(i % 7) - 3;
    for (int64_t m : {1, 17}) EXPECT_EQ(WorstError(weight, x, m, Run(weight, x, m), 1.0), 0.0);
  }
}

TEST(QuantizedLinearAgreesWithDoubles) {
  for (WeightType type : kTypes) {
    for (auto [n, k] : kQuantizedShapes) {
      Weight weight(n, k, type);
      const std::vector<float> x = Input(9, k);
      const std::vector<float> out = Run(weight, x, 9);
      weight.plain = Dequantized(Quantized(weight.plain, type), type);
      for (int64_t r = 0; r < 9; ++r) {
        for (int64_t c = 0; c < n; ++c) {
          double exact = 0, allowed = 1e-6;
          for (int64_t begin = 0; begin < k; begin += 32) {
            double largest = 0, magnitude = 0;
            for (int64_t i = begin; i < begin + 32; ++i) {
              const double w = weight.plain[c * k + i];
              exact += w * x[r * k + i];
              magnitude += std::abs(w);
              largest = std::max(largest, std::abs(double{x[r * k + i]}));
            }
            allowed += magnitude * largest / 127 * 0.5001;  // half a step of each input
          }
          EXPECT(std::abs(out[r * n + c] - exact) <= allowed * (1 + 1e-5));
        }
      }
    }
  }
}

TEST(InputsThatAreIntegersAreMultipliedExactly) {
  // Rows whose blocks reach 127 have the scale 1.
  for (WeightType type : kTypes) {
    const int64_t n = 40, k = 96, m = 11;
    Weight weight(n, k, type);
    std::mt19937 random(3);
    for (float& w : weight.plain) w = static_cast<float>(static_cast<int>(random() % 16) - 8);
    for (int64_t b = 0; b < n * k; b += 32) weight.plain[b] = -8.0f;
    PackLinear(weight.plain.data(), n, k, type, LinearBackend::kOwn, weight.packed);
    std::vector<float> x(m * k);
    for (float& value : x) value = static_cast<float>(static_cast<int>(random() % 255) - 127);
    for (size_t b = 0; b < x.size(); b += 32) x[b + 31] = random() % 2 == 0 ? 127.0f : -127.0f;
    const std::vector<float> out = Run(weight, x, m);
    EXPECT_EQ(WorstError(weight, x, m, out, 1.0), 0.0);
  }
}

TEST(AQuantizedRowIsTheSameAmongAnyNumberOfRows) {
  for (WeightType type : kTypes) {
    for (auto [n, k] : kQuantizedShapes) {
      Weight weight(n, k, type);
      const std::vector<float> x = Input(100, k);
      const std::vector<float> all = Run(weight, x, 100);
      for (int64_t m = 1; m <= 64; ++m) {
        EXPECT(SameBits(Run(weight, x, m).data(), all.data(), m * n));
        const std::vector<float> tail(x.end() - m * k, x.end());
        EXPECT(SameBits(Run(weight, tail, m).data(), all.data() + (100 - m) * n, m * n));
      }
    }
  }
}

TEST(AQuantizedRowIsTheSameWithAnyNumberOfThreads) {
  constexpr int64_t kN = 200, kK = 320;
  const int threads = omp_get_max_threads();
  const auto check = [&](const void* packed) {
    for (int64_t m : {6, 17, 40}) {
      const std::vector<float> x = Input(m, kK);
      std::vector<float> alone(m * kN), out(m * kN);
      omp_set_num_threads(1);
      Linear(x.data(), m, packed, nullptr, alone.data());
      for (int count : {2, 3, 9}) {
        omp_set_num_threads(count);
        Linear(x.data(), m, packed, nullptr, out.data());
        EXPECT(SameBits(out.data(), alone.data(), m * kN));
      }
    }
  };
  for (WeightType type : kTypes) check(Weight(kN, kK, type).packed);
  for (WeightType type : {WeightType::kInt4Offset, WeightType::kInt8Parts}) {
    check(KeptWeight(kN, kK, type).packed);
  }
  omp_set_num_threads(threads);
}

TEST(AQuantizedProductAddsTheAddendOnce) {
  for (WeightType type : kTypes) {
    Weight weight(33, 192, type);
    const std::vector<float> x = Input(9, 192);
    const std::vector<float> plain = Run(weight, x, 9);
    std::vector<float> sum = Input(9, 33);
    const std::vector<float> addend = sum;
    Linear(x.data(), 9, weight.packed, sum.data(), sum.data());
    for (size_t i = 0; i < sum.size(); ++i) EXPECT_EQ(sum[i], plain[i] + addend[i]);
  }
}

TEST(NaNAndInfinityStayInTheirQuantizedRow) {
  for (WeightType type : kTypes) {
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      Weight weight(20, 64, type);
      std::vector<float> x = Input(8, 64);
      const std::vector<float> clean = Run(weight, x, 8);
      x[3 * 64 + 7] = bad;
      const std::vector<float> out = Run(weight, x, 8);
      for (int64_t i = 0; i < 8 * 20; ++i) {
        EXPECT(i / 20 == 3 ? std::isnan(out[i]) : out[i] == clean[i]);
      }
    }
  }
}

TEST(QuantizedInputsMustBeWholeBlocks) {
  EXPECT_ERROR(PackedLinearBytes(4, 33, WeightType::kInt8, LinearBackend::kOwn), kValue,
               "a multiple of 32 columns, not 33");
}

TEST(BlocksWithAnOffsetAreMultipliedAsTheyAre) {
  for (WeightType type : {WeightType::kInt4Offset, WeightType::kInt8Parts}) {
    const KeptWeight weight(70, 96, type);
    // Inputs that are their own integers: only the floats behind the sums of blocks are rounded.
    const int64_t m = 21;
    std::mt19937 random(3);
    std::vector<float> x(m * weight.k);
    for (float& value : x) value = static_cast<float>(static_cast<int>(random() % 255) - 127);
    for (size_t b = 0; b < x.size(); b += 32) x[b + 31] = random() % 2 == 0 ? 127.0f : -127.0f;
    std::vector<float> out(m * weight.n);
    Linear(x.data(), m, weight.packed, nullptr, out.data());
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t c = 0; c < weight.n; ++c) {
        double exact = 0, magnitude = 0;
        for (int64_t i = 0; i < weight.k; ++i) {
          const double product = double{x[r * weight.k + i]} * weight.plain[c * weight.k + i];
          exact += product;
          magnitude += std::abs(product);
        }
        EXPECT(std::abs(out[r * weight.n + c] - exact) <= 1e-5 * magnitude);
      }
    }
  }
}

TEST(ARowOfBlocksWithAnOffsetIsTheSameAmongAnyNumberOfRows) {
  for (WeightType type : {WeightType::kInt4Offset, WeightType::kInt8Parts}) {
    for (auto [n, k] : kQuantizedShapes) {
      const KeptWeight weight(n, k, type);
      const std::vector<float> x = Input(40, k);
      std::vector<float> all(40 * n), some(40 * n);
      Linear(x.data(), 40, weight.packed, nullptr, all.data());
      for (int64_t m = 1; m <= 40; ++m) {
        Linear(x.data() + (40 - m) * k, m, weight.packed, nullptr, some.data());
        EXPECT(SameBits(some.data(), all.data() + (40 - m) * n, m * n));
      }
    }
  }
}

// Fewer panels than there are stay in the second-level cache while so many rows pass over them.
TEST(ALongQuantizedRowIsTheSameAmongAnyNumberOfRows) {
  constexpr int64_t kN = 100, kMost = 40, kK = 8192;
  const std::vector<float> x = Input(kMost, kK);
  const auto check = [&](const void* packed) {
    std::vector<float> all(kMost * kN), some(kMost * kN);
    Linear(x.data(), kMost, packed, nullptr, all.data());
    for (int64_t m : {1, 8, 17, 33}) {
      Linear(x.data(), m, packed, nullptr, some.data());
      EXPECT(SameBits(some.data(), all.data(), m * kN));
    }
  };
  for (WeightType type : kTypes) check(Weight(kN, kK, type).packed);
  for (WeightType type : {WeightType::kInt4Offset, WeightType::kInt8Parts}) {
    check(KeptWeight(kN, kK, type).packed);
  }
}

TEST(FloatsDoNotBecomeBlocksWithAnOffset) {
  const std::vector<float> weight(64);
  EXPECT_ERROR(
      PackLinear(weight.data(), 2, 32, WeightType::kInt8Parts, LinearBackend::kOwn, nullptr),
      kValue, "int8 or int4");
}
