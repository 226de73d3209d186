// Products at the end of readable memory. Sanitizers do not see what instructions of tiles read.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#include "check.h"
#include "kernels/quantized_blocks.h"
#include "packed_weight.h"

using namespace kvctl;

namespace {

/*! \brief Memory behind which the next byte, or one fewer than `alignment` later, is a fault. */
class AtTheEnd {
 public:
  explicit AtTheEnd(size_t bytes, size_t alignment = sizeof(float)) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t whole = (bytes + alignment + page - 1) / page * page;
    size_ = whole + page;
    void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<uint8_t*>(memory);
    mprotect(memory_ + whole, page, PROT_NONE);
    data_ = memory_ + (whole - bytes) / alignment * alignment;
  }
  AtTheEnd(const AtTheEnd&) = delete;
  AtTheEnd& operator=(const AtTheEnd&) = delete;
  ~AtTheEnd() { munmap(memory_, size_); }

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  uint8_t *memory_, *data_;
  size_t size_;
};

/*! \brief Multiplies m rows with and without an addend, by a weight of that type. */
void MultiplyAtTheEnd(int64_t n, int64_t k, WeightType type, LinearBackend backend) {
  const size_t bytes = PackedLinearBytes(n, k, type, backend);
  const AtTheEnd packed(bytes, 64);
  if (HasOffset(type)) {
    const auto size = static_cast<size_t>(n * (k / 32) * BlockBytes(type));
    const AtTheEnd blocks(size, 1);
    std::memset(blocks.as<uint8_t>(), 1, size);
    PackBlocks(blocks.as<uint8_t>(), n, k, type, packed.as<void>());
  } else {
    const std::vector<float> plain = Input(n, k);
    const AtTheEnd weight(plain.size() * sizeof(float));
    std::copy(plain.begin(), plain.end(), weight.as<float>());
    PackLinear(weight.as<float>(), n, k, type, backend, packed.as<void>());
  }
  for (int64_t m : {1, 2, 5, 7, 8, 9, 13, 15, 16, 17, 25, 32, 33, 49, 64}) {
    const size_t outputs = static_cast<size_t>(m * n) * sizeof(float);
    const std::vector<float> rows = Input(m, k), added = Input(m, n);
    const AtTheEnd x(rows.size() * sizeof(float)), addend(outputs), plain(outputs), sum(outputs);
    std::copy(rows.begin(), rows.end(), x.as<float>());
    std::copy(added.begin(), added.end(), addend.as<float>());
    plain.as<float>()[-1] = sum.as<float>()[-1] = 7.0f;
    Linear(x.as<float>(), m, packed.as<void>(), nullptr, plain.as<float>());
    Linear(x.as<float>(), m, packed.as<void>(), addend.as<float>(), sum.as<float>());
    EXPECT(plain.as<float>()[-1] == 7.0f && sum.as<float>()[-1] == 7.0f);
    for (int64_t i = 0; i < m * n; ++i) {
      EXPECT_EQ(sum.as<float>()[i], plain.as<float>()[i] + addend.as<float>()[i]);
    }
  }
}

}  // namespace

TEST(ProductsOfFloatsStayWithinTheirArrays) {
  for (auto [n, k] : {std::pair{1, 1}, {7, 31}, {17, 127}, {33, 129}, {70, 33}}) {
    MultiplyAtTheEnd(n, k, WeightType::kFloat32, LinearBackend::kOwn);
    MultiplyAtTheEnd(n, k, WeightType::kBFloat16, LinearBackend::kOwn);
    const LinearBackend chosen = ChooseLinearBackend(WeightType::kBFloat16);
    if (chosen != LinearBackend::kOwn) MultiplyAtTheEnd(n, k, WeightType::kBFloat16, chosen);
  }
}

TEST(ProductsOfQuantizedRowsStayWithinTheirArrays) {
  for (WeightType type :
       {WeightType::kInt8, WeightType::kInt4, WeightType::kInt4Offset, WeightType::kInt8Parts}) {
    for (auto [n, k] : {std::pair{1, 32}, {17, 64}, {33, 96}, {70, 128}}) {
      MultiplyAtTheEnd(n, k, type, LinearBackend::kOwn);
    }
  }
}
