/*!
 * \file paged_layer.h
 * \brief The pages of one layer, filled by tests.
 */
#ifndef KVCTL_TESTS_KERNELS_PAGED_LAYER_H_
#define KVCTL_TESTS_KERNELS_PAGED_LAYER_H_

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/convert.h"
#include "kernels/int8_row.h"
#include "kvctl/dtype.h"

namespace kvctl {

struct Shape {
  int32_t qo_heads = 6, kv_heads = 2, head_dim = 64, page_size = 16;
};

/*! \brief One layer of a cache. Pages are handed out in random order; unused pages hold NaN. */
class PagedLayer {
 public:
  PagedLayer(Shape shape, DType dtype, int32_t num_pages, uint32_t seed)
      : shape(shape), dtype(dtype), rng(seed) {
    data.assign(int64_t(num_pages) * 2 * shape.kv_heads * shape.page_size * row_bytes(),
                0xff);  // NaN in every dtype
    for (int32_t page = 0; page < num_pages; ++page) free.push_back(page);
    std::shuffle(free.begin(), free.end(), rng);
  }

  int64_t row_bytes() const { return RowElements(dtype, shape.head_dim) * DTypeSize(dtype); }

  /*! \brief Writes K or V of one key and head. */
  void Set(int32_t page, int32_t kv, int32_t head, int32_t offset, const float* values) {
    const int64_t row =
        ((int64_t(page) * 2 + kv) * shape.kv_heads + head) * shape.page_size + offset;
    if (dtype == DType::kInt8) {
      QuantizeRow(values, shape.head_dim,
                  reinterpret_cast<int8_t*>(data.data() + row * row_bytes()));
      return;
    }
    for (int32_t d = 0; d < shape.head_dim; ++d) Put(row * shape.head_dim + d, values[d]);
  }

  /*! \brief The same pages in float32. */
  PagedLayer Dequantized() const {
    PagedLayer other = *this;
    other.dtype = DType::kFloat32;
    const auto rows = static_cast<int64_t>(data.size()) / row_bytes();
    other.data.resize(rows * other.row_bytes());
    for (int64_t row = 0; row < rows; ++row) {
      DequantizeRow(reinterpret_cast<const int8_t*>(data.data() + row * row_bytes()),
                    shape.head_dim,
                    reinterpret_cast<float*>(other.data.data() + row * other.row_bytes()));
    }
    return other;
  }

  double Get(int32_t page, int32_t kv, int32_t head, int32_t offset, int32_t d) const {
    const int64_t at =
        (((int64_t(page) * 2 + kv) * shape.kv_heads + head) * shape.page_size + offset) *
            shape.head_dim +
        d;
    switch (dtype) {
      case DType::kFloat16:
        return ToFloat(reinterpret_cast<const Float16*>(data.data())[at]);
      case DType::kBFloat16:
        return ToFloat(reinterpret_cast<const BFloat16*>(data.data())[at]);
      default:
        return reinterpret_cast<const float*>(data.data())[at];
    }
  }

  /*! \brief Copies K and V of a key, all heads, from one slot to another. */
  void Copy(int32_t from_page, int32_t from_offset, int32_t to_page, int32_t to_offset) {
    const int64_t bytes = row_bytes();
    for (int32_t i = 0; i < 2 * shape.kv_heads; ++i) {
      const uint8_t* from =
          data.data() +
          ((int64_t(from_page) * 2 * shape.kv_heads + i) * shape.page_size + from_offset) * bytes;
      std::copy_n(
          from, bytes,
          data.data() +
              ((int64_t(to_page) * 2 * shape.kv_heads + i) * shape.page_size + to_offset) * bytes);
    }
  }

  int32_t TakePage() {
    const int32_t page = free.back();
    free.pop_back();
    return page;
  }

  void Put(int64_t at, float value) {
    switch (dtype) {
      case DType::kFloat16:
        return FromFloat(value, reinterpret_cast<Float16*>(data.data()) + at);
      case DType::kBFloat16:
        return FromFloat(value, reinterpret_cast<BFloat16*>(data.data()) + at);
      default:
        reinterpret_cast<float*>(data.data())[at] = value;
    }
  }

  std::vector<float> Random(int64_t size, float scale = 1.f) {
    std::normal_distribution<float> normal(0.f, scale);
    std::vector<float> values(size);
    for (float& value : values) value = normal(rng);
    return values;
  }

  Shape shape;
  DType dtype;
  std::mt19937 rng;
  std::vector<uint8_t> data;
  std::vector<int32_t> free;
};

}  // namespace kvctl

#endif  // KVCTL_TESTS_KERNELS_PAGED_LAYER_H_
