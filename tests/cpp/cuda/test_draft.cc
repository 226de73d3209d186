// The kernels draw the tokens that the CPU draws, from bitwise the same distributions.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>

#include "check.h"
#include "core/verify/draft.h"
#include "device_array.h"
#include "kernels/convert.h"
#include "kernels/cuda/verify/verify_device.h"
#include "kernels/sampling.h"

namespace kvctl {
namespace {

constexpr int32_t kRows = 3, kTokens = 4;

/*! \brief Rows of one type with parameters of their own. */
struct Rows {
  int32_t vocab;
  DType type;
  std::vector<uint8_t> logits;
  std::vector<Sampling> sampling;
  std::vector<uint32_t> bitmask;  // [kRows, words], or empty

  Rows(std::mt19937* rng, int32_t vocab)
      : vocab(vocab), type(static_cast<DType>((*rng)() % 3)), sampling(kRows) {
    const auto random = [&](int32_t n) { return static_cast<int32_t>((*rng)() % n); };
    const int64_t element = DTypeSize(type);
    logits.resize(kRows * vocab * element);
    std::normal_distribution<float> normal(0.f, random(2) == 0 ? 2.f : 9.f);
    for (int32_t i = 0; i < kRows * vocab; ++i) {
      const float value = i % vocab == 0 ? 1.f : random(6) == 0 ? -INFINITY : normal(*rng);
      void* to = logits.data() + i * element;
      if (type == DType::kFloat32) *static_cast<float*>(to) = value;
      if (type == DType::kFloat16) FromFloat(value, static_cast<Float16*>(to));
      if (type == DType::kBFloat16) FromFloat(value, static_cast<BFloat16*>(to));
    }
    const double temperatures[] = {1.0, 0.7, 1.4, 0.0};
    for (Sampling& one : sampling) {
      one.temperature = temperatures[random(4)];
      if (random(3) == 0) one.top_k = 1 + random(6);
      if (random(3) == 0) one.top_p = 0.8;
      if (random(4) == 0) one.min_p = 0.05;
      if (random(3) == 0) one.logit_bias = {{0, 0.5f}};
    }
    if (random(3) != 0) return;
    bitmask.resize(kRows * ((vocab + 31) / 32));
    for (uint32_t& word : bitmask) word = static_cast<uint32_t>((*rng)()) | 1u;
  }

  std::vector<DraftItem> Items(const void* values, void* probs, DType probs_type,
                               std::vector<int32_t>* tokens) const {
    std::vector<DraftItem> items(kRows);
    tokens->assign(kRows * kTokens, -7);
    for (int32_t row = 0; row < kRows; ++row) {
      DraftItem& item = items[row];
      item.row.values = static_cast<const char*>(values) + row * vocab * DTypeSize(type);
      item.row.type = type;
      if (!bitmask.empty()) item.row.bitmask = bitmask.data() + row * ((vocab + 31) / 32);
      item.sampling = &sampling[row];
      item.stream = {5, static_cast<uint64_t>(row)};
      item.root_position = static_cast<uint32_t>(30 + row);
      item.first_node = static_cast<uint32_t>(1 + 4 * row);
      item.depth = static_cast<uint32_t>(1 + row);
      item.tokens = tokens->data() + row * kTokens;
      item.probs = static_cast<char*>(probs) + row * vocab * DTypeSize(probs_type);
    }
    return items;
  }
};

/*! \brief Returns the number of tokens drawn. */
int64_t CheckDraft(std::mt19937* rng, CudaVerify* cuda, int32_t vocab, Drawn how) {
  const Rows rows(rng, vocab);
  const DType probs_type = (*rng)() % 2 == 0 ? DType::kFloat32 : DType::kFloat64;
  const size_t bytes = kRows * vocab * DTypeSize(probs_type);
  std::vector<int32_t> want, got;
  std::vector<uint8_t> probs(bytes);
  std::vector<DraftItem> cpu = rows.Items(rows.logits.data(), probs.data(), probs_type, &want);
  DraftItems(how, kTokens, probs_type, vocab, ShareItemsAmongThreads, &cpu);
  const DeviceArray<uint8_t> logits(rows.logits), device_probs(bytes);
  std::vector<DraftItem> device = rows.Items(logits.data(), device_probs.data(), probs_type, &got);
  EXPECT(cuda->Draft(how, kTokens, probs_type, vocab, &device, nullptr));
  EXPECT(got == want);
  EXPECT(device_probs.Read() == probs);
  return std::count_if(want.begin(), want.end(), [](int32_t token) { return token >= 0; });
}

constexpr Drawn kHow[] = {Drawn::kDeterministic, Drawn::kIndependent, Drawn::kWithoutReplacement,
                          Drawn::kCoupled};

}  // namespace

TEST(CudaDraftsAreThoseOfTheCpu) {
  std::mt19937 rng(21);
  const std::unique_ptr<CudaVerify> cuda(cuda::CreateVerify(0));
  InEveryOrder([&] {
    int64_t drawn = 0;
    for (const int32_t vocab : {3, 50, 301}) {
      for (int32_t round = 0; round < 4; ++round) {
        for (const Drawn how : kHow) drawn += CheckDraft(&rng, cuda.get(), vocab, how);
      }
    }
    EXPECT(drawn > 0);
  });
}

TEST(CudaDraftsAreThoseOfTheCpuOverSeveralBlocks) {
  std::mt19937 rng(22);
  const std::unique_ptr<CudaVerify> cuda(cuda::CreateVerify(0));
  for (const Drawn how : kHow) CheckDraft(&rng, cuda.get(), 9000, how);
}

TEST(CudaDraftsLeaveRowsWithoutTokensToTheCpu) {
  const std::unique_ptr<CudaVerify> cuda(cuda::CreateVerify(0));
  std::mt19937 rng(23);
  Rows rows(&rng, 40);
  std::fill(rows.logits.begin(), rows.logits.end(), 0xFF);  // NaN
  const DeviceArray<uint8_t> logits(rows.logits), probs(kRows * 40 * 4);
  std::vector<int32_t> tokens;
  std::vector<DraftItem> items = rows.Items(logits.data(), probs.data(), DType::kFloat32, &tokens);
  EXPECT(!cuda->Draft(Drawn::kIndependent, kTokens, DType::kFloat32, 40, &items, nullptr));
}

}  // namespace kvctl
