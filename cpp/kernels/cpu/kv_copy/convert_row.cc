#include "kernels/convert_row.h"

#include <cstring>

#include "kernels/convert.h"
#include "kernels/cpu/kv_copy/convert_row_avx2.h"
#include "kernels/isa.h"

namespace kvctl {
namespace {

// The conversions of kernels/convert.h, and for NaN those of the vector instructions: it keeps the
// bits that fit, and is quiet.
float FromHalf(Float16 half) {
  const float value = ToFloat(half);
  return value == value ? value : FromBits(ToBits(value) | 0x00400000);
}

Float16 ToHalf(float value) {
  Float16 half;
  FromFloat(value, &half);
  if (value == value) return half;
  const uint32_t bits = ToBits(value);
  return {static_cast<uint16_t>((bits >> 16 & 0x8000) | 0x7e00 | (bits >> 13 & 0x3ff))};
}

float Load(const void* source, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat16:
      return FromHalf(static_cast<const Float16*>(source)[i]);
    case DType::kBFloat16:
      return ToFloat(static_cast<const BFloat16*>(source)[i]);
    default:
      return static_cast<const float*>(source)[i];
  }
}

void Store(float value, void* target, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat16:
      static_cast<Float16*>(target)[i] = ToHalf(value);
      break;
    case DType::kBFloat16:
      FromFloat(value, static_cast<BFloat16*>(target) + i);
      break;
    default:
      static_cast<float*>(target)[i] = value;
  }
}

}  // namespace

void ConvertRow(const void* source, DType source_dtype, void* target, DType target_dtype,
                int64_t count) {
  if (source_dtype == target_dtype) {
    std::memcpy(target, source, count * DTypeSize(target_dtype));
    return;
  }
  int64_t done = 0;
  if (CpuIsa() >= Isa::kAvx2) {
    done = ConvertBlocksAvx2(source, source_dtype, target, target_dtype, count);
  }
  for (; done < count; ++done) {
    Store(Load(source, source_dtype, done), target, target_dtype, done);
  }
}

}  // namespace kvctl
