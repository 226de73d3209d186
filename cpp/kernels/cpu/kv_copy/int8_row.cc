#include "kernels/int8_row.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "kernels/convert.h"

namespace kvctl {
namespace {

constexpr float kLargest = 127;

/*! \brief The largest magnitude of a row, or NaN or infinity if an element is. */
float LargestMagnitude(const float* row, int32_t size) {
  // As integers, magnitudes are in the same order, NaN above all: an integer maximum vectorises.
  int32_t largest = 0;
  for (int32_t d = 0; d < size; ++d) {
    largest = std::max(largest, static_cast<int32_t>(ToBits(row[d]) & 0x7fffffffu));
  }
  return FromBits(static_cast<uint32_t>(largest));
}

/*! \brief Rounds |x| < 2^22 to the nearest integer, ties to even. */
int8_t Round(float x) {
  constexpr float kShift = 0x1.8p23f;  // behind it a float has no bits for fractions
  return static_cast<int8_t>(static_cast<int32_t>(ToBits(x + kShift) - ToBits(kShift)));
}

float ScaleOf(float largest) {
  const float scale = largest / kLargest;
  // Rounded up, the scale of the very largest floats would make 127 of it infinite.
  return std::isinf(scale * kLargest) ? std::nextafter(scale, 0.f) : scale;
}

}  // namespace

void QuantizeRow(const float* source, int32_t head_dim, int8_t* target) {
  const float largest = LargestMagnitude(source, head_dim);
  float scale = 0;
  if (!std::isfinite(largest)) {
    scale = FromBits(0x7fc00000u);
  } else if (largest >= kLargest * FLT_MIN) {
    scale = ScaleOf(largest);
  }
  std::memcpy(target + head_dim, &scale, sizeof(scale));
  if (!(scale > 0)) {
    std::memset(target, 0, head_dim);
    return;
  }
  for (int32_t d = 0; d < head_dim; ++d) target[d] = Round(source[d] / scale);
}

void DequantizeRow(const int8_t* source, int32_t head_dim, float* target) {
  float scale;
  std::memcpy(&scale, source + head_dim, sizeof(scale));
  for (int32_t d = 0; d < head_dim; ++d) target[d] = static_cast<float>(source[d]) * scale;
}

}  // namespace kvctl
