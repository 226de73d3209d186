#include "kernels/quantized_blocks.h"

#include <cmath>
#include <cstring>

#include "kernels/convert.h"
#include "kernels/team.h"

namespace kvctl {
namespace {

/*! \brief The weight of the largest magnitude, with its sign. */
float Largest(const float* w) {
  float largest = 0.0f;
  for (int i = 0; i < kBlockInputs; ++i) {
    if (std::fabs(w[i]) > std::fabs(largest)) largest = w[i];
  }
  return largest;
}

/*! \brief The integer nearest to a value below 2^22, ties to even; another one above. */
float Nearest(float value) { return (value + 12582912.0f) - 12582912.0f; }

/*! \brief The float16 nearest to value, as a float. */
float ToScale(float value) {
  Float16 half;
  FromFloat(value, &half);
  return ToFloat(half);
}

/*! \brief Whether every weight is scale times an integer from low to high. */
bool IsExact(const float* w, float scale, int low, int high) {
  for (int i = 0; i < kBlockInputs; ++i) {
    const float q = Nearest(w[i] / scale);
    if (!(q >= static_cast<float>(low) && q <= static_cast<float>(high)) || q * scale != w[i]) {
      return false;
    }
  }
  return true;
}

/*! \brief The scale with which every weight is exact, the largest being q or -q times it; or 0. */
float ExactScale(const float* w, float largest, int q, int low, int high) {
  const float scale = largest / static_cast<float>(-q);
  // A float16 has 13 bits less: almost every scale of other weights ends here.
  if ((ToBits(scale) & 0x1fff) != 0 || ToScale(scale) != scale) return 0.0f;
  if (IsExact(w, scale, low, high)) return scale;
  return IsExact(w, -scale, low, high) ? -scale : 0.0f;
}

/*! \brief The scale of a block of integers from low to high. */
float ScaleOf(const float* w, WeightType type, int low, int high) {
  const float largest = Largest(w);
  // With 4 bits the largest weight takes the integer that only negative ones have; with 8 bits that
  // one is left to weights that were quantised before.
  const float usual =
      ToScale(type == WeightType::kInt8 ? std::fabs(largest) / static_cast<float>(high)
                                        : largest / static_cast<float>(low));
  if (usual == 0.0f || !std::isfinite(usual) || IsExact(w, usual, low, high)) return usual;
  for (int q = high; q >= 1; --q) {
    const float scale = ExactScale(w, largest, q, low, high);
    if (scale != 0.0f) return scale;
  }
  const float scale = ExactScale(w, largest, -low, low, high);
  return scale != 0.0f ? scale : usual;
}

int Quantized(float weight, float scale, int low, int high) {
  if (scale == 0.0f) return 0;
  const float q = Nearest(weight / scale);
  return q < static_cast<float>(low)    ? low
         : q > static_cast<float>(high) ? high
                                        : static_cast<int>(q);
}

void QuantizeBlock(const float* w, WeightType type, uint8_t* block) {
  const bool bytes = type == WeightType::kInt8;
  const int low = bytes ? -128 : -8, high = bytes ? 127 : 7;
  const float scale = ScaleOf(w, type, low, high);
  Float16 half;
  FromFloat(scale, &half);
  std::memcpy(block, &half, sizeof(half));
  uint8_t* values = block + sizeof(half);
  for (int i = 0; i < kBlockInputs; ++i) {
    const int q = Quantized(w[i], scale, low, high);
    if (bytes) {
      values[i] = static_cast<uint8_t>(q);
    } else if (i < kBlockInputs / 2) {
      values[i] = static_cast<uint8_t>(q + 8);
    } else {
      values[i - kBlockInputs / 2] |= static_cast<uint8_t>((q + 8) << 4);
    }
  }
}

}  // namespace

void QuantizeBlocks(const float* weights, int64_t count, WeightType type, uint8_t* blocks) {
  const int64_t whole = count / kBlockInputs;
#pragma omp parallel for schedule(static) if (UseTeam(true))
  for (int64_t b = 0; b < whole; ++b) {
    QuantizeBlock(weights + b * kBlockInputs, type, blocks + b * BlockBytes(type));
  }
}

}  // namespace kvctl
