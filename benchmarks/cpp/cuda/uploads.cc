// What a step of decoding sends to the device: the whole plan, and what has changed of it. Needs no
// device: bytes are counted on the host.
//
//     uploads > benchmarks/results/cuda/cuda_uploads.md
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "core/mask/mask_plan.h"
#include "kernels/cuda/device/device_plan.h"

namespace {

using kvctl::cuda::ChangedRun;
using kvctl::cuda::DevicePlanBuilder;
using kvctl::cuda::kItemQueries;
using kvctl::cuda::kMaxItemQueries;
using kvctl::cuda::PlanShape;
using kvctl::cuda::ResidentRows;
using kvctl::cuda::ResidentWords;

// Llama 3 8B's attention on an H100, which runs two blocks on each of 132 multiprocessors.
constexpr int32_t kLayers = 32, kKVHeads = 8, kGroup = 4, kHeadDim = 128, kPageSize = 16;
constexpr int32_t kBlocks = 264, kSteps = 512;

/*! \brief Bytes of a step, over many. */
struct Bytes {
  int64_t mean = 0, most = 0;
};

struct Figures {
  Bytes whole, changes;
};

/*! \param queries New tokens of each sequence, which stay. */
Figures Count(int32_t batch, int32_t kv, int32_t queries) {
  const PlanShape shape{kLayers,
                        kKVHeads,
                        kGroup,
                        kPageSize,
                        {kBlocks, kBlocks, kBlocks},
                        2 * kBlocks * kMaxItemQueries,
                        kHeadDim};
  DevicePlanBuilder whole(shape), changing(shape);
  ResidentWords words(1 << 22);
  std::mt19937 rng(1);
  std::vector<int32_t> lengths(batch),
      pages(batch * (kv + kSteps * queries) / kPageSize + 64 * batch);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), rng);
  for (int32_t& length : lengths) length = kv + static_cast<int32_t>(rng() % 256);
  std::vector<std::vector<int32_t>> tables(batch);
  std::vector<int64_t> ids(batch);
  std::iota(ids.begin(), ids.end(), 0);
  const std::vector<float> rope(batch * queries * kHeadDim, 1.f);
  Figures figures;
  const auto add = [](int64_t bytes, Bytes* to) {
    to->mean += bytes;
    to->most = std::max(to->most, bytes);
  };
  for (int32_t i = -1; i < kSteps; ++i) {
    kvctl::StepPlan step;
    for (int32_t s = 0; s < batch; ++s) {
      kvctl::SequencePlan plan{};
      plan.query_begin = step.num_query_tokens();
      plan.num_query_tokens = plan.num_pending = queries;
      plan.num_committed = plan.next_position = lengths[s];
      while (static_cast<int32_t>(tables[s].size()) * kPageSize < plan.kv_len()) {
        tables[s].push_back(pages.back());
        pages.pop_back();
      }
      plan.pages = tables[s].data();
      for (int32_t key = lengths[s]; key < plan.kv_len(); ++key) {
        step.slots.push_back(tables[s][key / kPageSize] * kPageSize + key % kPageSize);
        step.positions.push_back(key);
      }
      step.sequences.push_back(plan);
      lengths[s] += queries;
    }
    kvctl::MaskTable masks;
    masks.Lower(nullptr, step, kLayers, kKVHeads);
    whole.Build(step, masks, rope.data());
    const ResidentRows rows{&words, 1 << 20, ids.data()};
    words.BeginStep();
    changing.Build(step, masks, rope.data(), nullptr, true, &rows);
    const auto sent = static_cast<int64_t>(words.runs().size() * sizeof(ChangedRun) +
                                           words.values().size() * sizeof(int32_t));
    words.Commit();
    if (i < 0) continue;  // the first step sends all
    add(whole.num_bytes(), &figures.whole);
    add(changing.num_bytes() + sent, &figures.changes);
  }
  figures.whole.mean /= kSteps;
  figures.changes.mean /= kSteps;
  return figures;
}

}  // namespace

int main() {
  std::printf(
      "# Bytes that a step sends to the device\n\n"
      "`benchmarks/cpp/cuda/uploads.cc`, counted on the host: no GPU was used. %d layers, %d/%d "
      "heads\n"
      "of %d, pages of %d tokens, RoPE's cosines and sines sent, %d blocks (an H100's). Means over "
      "%d\n"
      "steps of sequences whose lengths differ at random by up to 256 tokens, and the most that a "
      "step\n"
      "sent. *whole*: page tables and work items with every step, as before; *changes*: what "
      "differs\n"
      "from what the device has.\n\n"
      "| new tokens | B | kv | whole | changes | ratio | most, whole | most, changes |\n"
      "|---|---|---|---|---|---|---|---|\n",
      kLayers, kKVHeads * kGroup, kKVHeads, kHeadDim, kPageSize, kBlocks, kSteps);
  for (const int32_t queries : {1, 8}) {
    for (const int32_t batch : {1, 8, 32}) {
      for (const int32_t kv : {8192, 32768}) {
        const Figures of = Count(batch, kv, queries);
        std::printf("| %d | %d | %d | %lld | %lld | %.1f | %lld | %lld |\n", queries, batch, kv,
                    static_cast<long long>(of.whole.mean), static_cast<long long>(of.changes.mean),
                    double(of.whole.mean) / double(of.changes.mean),
                    static_cast<long long>(of.whole.most), static_cast<long long>(of.changes.most));
      }
    }
  }
  return 0;
}
