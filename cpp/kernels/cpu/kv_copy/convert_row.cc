#include "kernels/convert_row.h"

#include <cstring>

#include "kernels/cpu/kv_copy/convert_row_avx2.h"
#include "kernels/isa.h"

namespace kvctl {
namespace {

float FromBFloat16(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

uint16_t ToBFloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);  // keep NaN
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

float Load(const void* source, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat16:
      return static_cast<float>(static_cast<const _Float16*>(source)[i]);
    case DType::kBFloat16:
      return FromBFloat16(static_cast<const uint16_t*>(source)[i]);
    default:
      return static_cast<const float*>(source)[i];
  }
}

void Store(float value, void* target, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat16:
      static_cast<_Float16*>(target)[i] = static_cast<_Float16>(value);
      break;
    case DType::kBFloat16:
      static_cast<uint16_t*>(target)[i] = ToBFloat16(value);
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
