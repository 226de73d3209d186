#include "kernels/kv_copy.h"

#include <array>
#include <cstring>

#include "kernels/convert_row.h"
#include "kernels/int8_row.h"

namespace kvctl {
namespace {

char* At(void* base, DType dtype, int64_t element) {
  return static_cast<char*>(base) + element * DTypeSize(dtype);
}

/*! \brief Visits every head row of K and V: f(address in the pages, address in the rows, rows'
 * dtype). */
template <typename F>
void ForEachHeadRow(const PageShape& shape, void* pages, const int32_t* slots, int64_t num_rows,
                    const KVRows& k, const KVRows& v, F&& f) {
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int32_t part = 0; part < shape.num_parts; ++part) {
      const KVRows& rows = part == 0 ? k : v;
      if (rows.data == nullptr) continue;
      const int64_t row_elements = RowElements(rows.dtype, shape.head_dim);
      for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
        f(At(pages, shape.dtype, shape.Offset(slots[row], part, head)),
          At(rows.data, rows.dtype, row * rows.row_stride + head * row_elements), rows.dtype);
      }
    }
  }
}

/*! \brief A row of one head from one dtype to another. */
void ConvertHeadRow(const char* source, DType source_dtype, char* target, DType target_dtype,
                    int32_t head_dim) {
  if (source_dtype == target_dtype ||
      (source_dtype != DType::kInt8 && target_dtype != DType::kInt8)) {
    ConvertRow(source, source_dtype, target, target_dtype, RowElements(source_dtype, head_dim));
    return;
  }
  std::array<float, kMostHeadElements> values;
  if (target_dtype == DType::kInt8) {
    ConvertRow(source, source_dtype, values.data(), DType::kFloat32, head_dim);
    QuantizeRow(values.data(), head_dim, reinterpret_cast<int8_t*>(target));
  } else {
    DequantizeRow(reinterpret_cast<const int8_t*>(source), head_dim, values.data());
    ConvertRow(values.data(), DType::kFloat32, target, target_dtype, head_dim);
  }
}

}  // namespace

void WriteSlotsCpu(const PageShape& shape, void* pages, const int32_t* slots, int64_t num_rows,
                   const KVRows& k, const KVRows& v) {
  ForEachHeadRow(shape, pages, slots, num_rows, k, v, [&](char* slot, char* row, DType row_dtype) {
    ConvertHeadRow(row, row_dtype, slot, shape.dtype, shape.head_dim);
  });
}

void ReadSlotsCpu(const PageShape& shape, const void* pages, const int32_t* slots, int64_t num_rows,
                  const KVRows& k, const KVRows& v) {
  ForEachHeadRow(shape, const_cast<void*>(pages), slots, num_rows, k, v,
                 [&](char* slot, char* row, DType row_dtype) {
                   ConvertHeadRow(slot, shape.dtype, row, row_dtype, shape.head_dim);
                 });
}

void CopyPageCpu(const PageShape& shape, void* pages, int32_t source, int32_t target) {
  char* base = static_cast<char*>(pages);
  std::memcpy(base + target * shape.num_bytes(), base + source * shape.num_bytes(),
              shape.num_bytes());
}

void CopySlotCpu(const PageShape& shape, void* pages, int32_t source, int32_t target) {
  for (int32_t part = 0; part < shape.num_parts; ++part) {
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      std::memcpy(At(pages, shape.dtype, shape.Offset(target, part, head)),
                  At(pages, shape.dtype, shape.Offset(source, part, head)),
                  shape.row_elements() * DTypeSize(shape.dtype));
    }
  }
}

void PoisonSlotCpu(const PageShape& shape, void* pages, int32_t slot) {
  for (int32_t part = 0; part < shape.num_parts; ++part) {
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      // All bits set is a NaN in every floating-point format, that of a scale included.
      std::memset(At(pages, shape.dtype, shape.Offset(slot, part, head)), 0xFF,
                  shape.row_elements() * DTypeSize(shape.dtype));
    }
  }
}

}  // namespace kvctl
