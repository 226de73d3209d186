/*!
 * \file kernels/linear/packed_weight.h
 * \brief Packed weights and inputs for the tests of linear layers.
 */
#ifndef KVCTL_TESTS_CPP_KERNELS_LINEAR_PACKED_WEIGHT_H_
#define KVCTL_TESTS_CPP_KERNELS_LINEAR_PACKED_WEIGHT_H_

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/linear.h"

namespace {

using namespace kvctl;

/*! \brief A packed weight and the plain one that it came from. */
struct Weight {
  Weight(int64_t n, int64_t k, WeightType type, LinearBackend backend = LinearBackend::kOwn)
      : n(n), k(k), plain(n * k), bytes(PackedLinearBytes(n, k, type, backend)) {
    std::mt19937 random(static_cast<unsigned>(n * 131 + k));
    std::normal_distribution<float> normal;
    for (float& w : plain) w = normal(random);
    packed = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    PackLinear(plain.data(), n, k, type, backend, packed);
  }
  ~Weight() { std::free(packed); }
  Weight(const Weight&) = delete;
  Weight& operator=(const Weight&) = delete;

  int64_t n, k;
  std::vector<float> plain;
  size_t bytes;
  void* packed;
};

inline std::vector<float> Input(int64_t m, int64_t k) {
  std::mt19937 random(static_cast<unsigned>(m * 7 + k));
  std::normal_distribution<float> normal;
  std::vector<float> x(m * k);
  for (float& value : x) value = normal(random);
  return x;
}

inline std::vector<float> Run(const Weight& weight, const std::vector<float>& x, int64_t m,
                              const float* addend = nullptr) {
  std::vector<float> out(m * weight.n, NAN);
  Linear(x.data(), m, weight.packed, addend, out.data());
  return out;
}

/*! \brief Largest |out - x Wᵀ| over the bound that rounding allows: k * 2^-24 * sum |x w|, in these
 * units. */
inline double WorstError(const Weight& weight, const std::vector<float>& x, int64_t m,
                         const std::vector<float>& out, double unit) {
  double worst = 0;
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t c = 0; c < weight.n; ++c) {
      double exact = 0, magnitude = 1e-30;
      for (int64_t i = 0; i < weight.k; ++i) {
        const double product = double{x[r * weight.k + i]} * weight.plain[c * weight.k + i];
        exact += product;
        magnitude += std::abs(product);
      }
      worst = std::max(worst, std::abs(out[r * weight.n + c] - exact) / (unit * magnitude));
    }
  }
  return worst;
}

inline bool SameBits(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, sizeof(float) * count) == 0;
}

// Shapes around the panel width (8, 16, 32), the chunk of inputs (128) and beyond.
constexpr int64_t kShapes[][2] = {{1, 1},    {3, 5},    {16, 128}, {17, 127},
                                  {33, 129}, {96, 300}, {64, 257}, {200, 64}};

}  // namespace

#endif  // KVCTL_TESTS_CPP_KERNELS_LINEAR_PACKED_WEIGHT_H_
