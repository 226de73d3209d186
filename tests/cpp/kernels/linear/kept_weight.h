/*!
 * \file kernels/linear/kept_weight.h
 * \brief Weights whose blocks have an offset, for the tests of linear layers.
 */
#ifndef KVCTL_TESTS_CPP_KERNELS_LINEAR_KEPT_WEIGHT_H_
#define KVCTL_TESTS_CPP_KERNELS_LINEAR_KEPT_WEIGHT_H_

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/convert.h"
#include "kernels/linear.h"
#include "kernels/quantized_blocks.h"

namespace {

using namespace kvctl;

inline float HalfAt(const uint8_t* p) {
  Float16 half;
  std::memcpy(&half, p, sizeof(half));
  return ToFloat(half);
}

/*! \brief Random blocks with an offset, packed, and the weights that they are. */
struct KeptWeight {
  KeptWeight(int64_t n, int64_t k, WeightType type) : n(n), k(k) {
    std::mt19937 random(static_cast<unsigned>(n * 17 + k));
    const int64_t size = BlockBytes(type);
    std::vector<uint8_t> blocks(static_cast<size_t>(n * k / 32 * size));
    for (uint8_t& byte : blocks) byte = static_cast<uint8_t>(random());
    for (size_t at = 0; at < blocks.size(); at += static_cast<size_t>(size)) {
      uint8_t* block = &blocks[at];
      for (int half = 0; half < 2; ++half) {
        Float16 scale;
        FromFloat(std::ldexp(static_cast<float>(random() % 2001) - 1000.0f, -18), &scale);
        std::memcpy(block + 2 * half, &scale, sizeof(scale));
      }
      const float scale = HalfAt(block), step = HalfAt(block + 2);
      for (int i = 0; i < 32; ++i) {
        float w;
        if (type == WeightType::kInt4Offset) {
          const int q = block[6 + i % 16] >> (i < 16 ? 0 : 4) & 15;
          w = scale * static_cast<float>(block[4]) * static_cast<float>(q);
          w -= step * static_cast<float>(block[5]);
        } else {
          const auto factor = static_cast<float>(static_cast<int8_t>(block[4 + i / 16]));
          w = scale * factor * static_cast<float>(static_cast<int8_t>(block[8 + i]));
          w -= step * static_cast<float>(block[6]);
        }
        plain.push_back(w);
      }
    }
    const size_t bytes = PackedLinearBytes(n, k, type, LinearBackend::kOwn);
    packed = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    PackBlocks(blocks.data(), n, k, type, packed);
  }
  ~KeptWeight() { std::free(packed); }
  KeptWeight(const KeptWeight&) = delete;
  KeptWeight& operator=(const KeptWeight&) = delete;

  int64_t n, k;
  std::vector<float> plain;
  void* packed;
};

}  // namespace

#endif  // KVCTL_TESTS_CPP_KERNELS_LINEAR_KEPT_WEIGHT_H_
