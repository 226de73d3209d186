#include <algorithm>
#include <cstring>
#include <memory>
#include <random>

#include "check.h"
#include "device_array.h"
#include "kernels/convert.h"
#include "kernels/cuda/kv_copy/slots.cuh"
#include "kernels/kv_copy.h"

namespace kvctl {
namespace {

std::vector<uint8_t> RandomBytes(std::mt19937* rng, int64_t size) {
  std::vector<uint8_t> bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>((*rng)() & 0x3f);  // no NaN in any dtype
  return bytes;
}

/*! \brief Slots of a sequence: those of some pages in random order. */
std::vector<int32_t> SomeSlots(std::mt19937* rng, int32_t first_page, int32_t pages,
                               int32_t page_size) {
  std::vector<int32_t> order;
  for (int32_t i = 0; i < pages; ++i) order.push_back(first_page + i);
  std::shuffle(order.begin(), order.end(), *rng);
  std::vector<int32_t> slots;
  for (int32_t page : order) {
    for (int32_t i = 0; i < page_size; ++i) slots.push_back(page * page_size + i);
  }
  return slots;
}

}  // namespace

TEST(CudaAppliesTheMovesOfACommitInOrder) {
  std::mt19937 rng(3);
  InEveryOrder([&] {
    for (const PageShape shape :
         {PageShape{2, 4, 64, DType::kFloat16}, PageShape{3, 5, 80, DType::kBFloat16},
          PageShape{1, 16, 8, DType::kFloat32}, PageShape{2, 4, 48, DType::kFloat8}}) {
      constexpr int32_t kLayers = 3, kPages = 80;
      const auto pages = static_cast<int32_t>(shape.num_bytes());
      std::vector<std::vector<uint8_t>> layers;
      std::vector<std::unique_ptr<DeviceArray<uint8_t>>> device;
      std::vector<void*> pointers;
      for (int32_t i = 0; i < kLayers; ++i) {
        layers.push_back(RandomBytes(&rng, int64_t{kPages} * pages));
        device.push_back(std::make_unique<DeviceArray<uint8_t>>(layers.back()));
        pointers.push_back(device.back()->data());
      }
      // A page copied on write, then moves within two sequences, one of which uses that page.
      std::vector<cuda::SlotPair> pairs;
      for (int32_t i = 0; i < shape.page_size; ++i) {
        pairs.push_back({7 * shape.page_size + i, 40 * shape.page_size + i});
      }
      const auto copies = static_cast<int32_t>(pairs.size());
      std::vector<int32_t> slots = SomeSlots(&rng, 40, 1, shape.page_size);
      const std::vector<int32_t> more = SomeSlots(&rng, 41, 30, shape.page_size);
      slots.insert(slots.end(), more.begin(), more.end());
      for (size_t to = 1, from = 2; from < slots.size(); ++to, from += 1 + rng() % 2) {
        pairs.push_back({slots[from], slots[to]});
      }
      for (const cuda::SlotPair& pair : pairs) {
        for (auto& layer : layers) CopySlotCpu(shape, layer.data(), pair.source, pair.target);
      }
      const DeviceArray<void*> layer_pointers(pointers);
      const DeviceArray<cuda::SlotPair> device_pairs(pairs);
      Must(cuda::MoveSlots(shape, layer_pointers.data(), kLayers, device_pairs.data(), copies,
                           static_cast<int32_t>(pairs.size()), nullptr));
      for (int32_t i = 0; i < kLayers; ++i) EXPECT(device[i]->Read() == layers[i]);
    }
  });
}

TEST(CudaReadsSetsAndPoisonsSlotsAsTheCpuDoes) {
  std::mt19937 rng(4);
  InEveryOrder([&] {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
      const PageShape shape{2, 4, 24, dtype};
      std::vector<uint8_t> pages(9 * shape.num_bytes(), 0xFF);
      const std::vector<int32_t> slots = {5, 30, 31, 0, 17};
      const int64_t stride = 2 * 24 + 5;
      std::vector<float> k(slots.size() * stride), v(k.size());
      for (size_t i = 0; i < k.size(); ++i) {
        k[i] = static_cast<float>(rng() % 2000) / 512;
        v[i] = -static_cast<float>(rng() % 2000) / 77;
      }
      const DeviceArray<uint8_t> device(pages);
      const DeviceArray<int32_t> device_slots(slots);
      const DeviceArray<float> dk(k), dv(v);
      WriteSlotsCpu(shape, pages.data(), slots.data(), slots.size(),
                    {k.data(), DType::kFloat32, stride}, {v.data(), DType::kFloat32, stride});
      Must(cuda::WriteSlots(shape, device.data(), device_slots.data(), slots.size(),
                            {dk.data(), DType::kFloat32, stride},
                            {dv.data(), DType::kFloat32, stride}, {}, nullptr));
      EXPECT(device.Read() == pages);

      std::vector<Float16> out_k(k.size(), Float16{0xFFFF}), out_v(out_k);
      const DeviceArray<Float16> device_k(k.size()), device_v(k.size());
      ReadSlotsCpu(shape, pages.data(), slots.data(), slots.size(),
                   {out_k.data(), DType::kFloat16, stride},
                   {out_v.data(), DType::kFloat16, stride});
      Must(cuda::ReadSlots(shape, device.data(), device_slots.data(), slots.size(),
                           {device_k.data(), DType::kFloat16, stride},
                           {device_v.data(), DType::kFloat16, stride}, {}, nullptr));
      EXPECT(std::memcmp(device_k.Read().data(), out_k.data(), k.size() * 2) == 0);
      EXPECT(std::memcmp(device_v.Read().data(), out_v.data(), k.size() * 2) == 0);

      for (int32_t i = 0; i < 3; ++i) PoisonSlotCpu(shape, pages.data(), slots[i]);
      Must(cuda::PoisonSlots(shape, device.data(), device_slots.data(), 3, nullptr));
      EXPECT(device.Read() == pages);
    }
  });
}

}  // namespace kvctl
