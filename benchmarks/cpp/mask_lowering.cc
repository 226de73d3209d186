/*!
 * \file benchmarks/cpp/mask_lowering.cc
 * \brief What it costs to lower masks at the beginning of a step.
 *
 * A tree of 64 nodes, a dense 64 x 64 mask, a full 64 x 8192 mask (random bits: the worst there
 * is), each with its construction from the caller's arrays; causal and tree masks behind nothing
 * and behind 128k tokens.
 */
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "core/mask/mask_plan.h"
#include "report.h"

namespace {

using kvctl::LowerMask;
using kvctl::Mask;
using kvctl::MaskPlan;
using kvctl::SequencePlan;
using kvctl_bench::Samples;

constexpr int32_t kRows = 64;

SequencePlan Sequence(int32_t past, const std::vector<int32_t>* parents,
                      const std::vector<int32_t>* depths) {
  SequencePlan sequence{};
  sequence.num_query_tokens = sequence.num_pending = kRows;
  sequence.num_committed = sequence.next_position = past;
  if (parents != nullptr) {
    sequence.parents = parents->data();
    sequence.depths = depths->data();
  }
  return sequence;
}

}  // namespace

int main(int argc, char** argv) {
  const char* path = argc > 1 ? argv[1] : "mask_lowering.json";
  const int repetitions = argc > 2 ? std::atoi(argv[2]) : 2000;
  std::mt19937 random(1);
  std::vector<int32_t> parents, depths;
  for (int32_t node = 0; node < kRows; ++node) {
    parents.push_back((node + 1) / 2 - 1);
    depths.push_back(node == 0 ? 0 : depths[parents[node]] + 1);
  }
  constexpr int32_t kColumns = 8192, kLong = 128 << 10;
  std::vector<uint8_t> bits(kRows * kColumns);
  for (uint8_t& bit : bits) bit = random() % 2;

  const SequencePlan chain = Sequence(1000, nullptr, nullptr);
  const SequencePlan within = Sequence(kColumns - kRows, nullptr, nullptr);
  const SequencePlan tree = Sequence(1000, &parents, &depths);
  const SequencePlan empty = Sequence(0, nullptr, nullptr),
                     tree_empty = Sequence(0, &parents, &depths);
  const SequencePlan late = Sequence(kLong, nullptr, nullptr);
  const SequencePlan tree_late = Sequence(kLong, &parents, &depths);
  MaskPlan plan;  // kept from step to step, as a cache does
  const std::vector<std::pair<std::string, std::function<void()>>> subjects = {
      {"tree of 64", [&] { LowerMask(nullptr, tree, &plan); }},
      {"dense 64 x 64",
       [&] {
         const Mask mask = Mask::Dense(bits.data(), kRows);
         LowerMask(&mask, chain, &plan);
       }},
      {"full 64 x 8192",
       [&] {
         const Mask mask = Mask::Full(bits.data(), kRows, kColumns);
         LowerMask(&mask, within, &plan);
       }},
      {"causal behind 0", [&] { LowerMask(nullptr, empty, &plan); }},
      {"causal behind 128k", [&] { LowerMask(nullptr, late, &plan); }},
      {"tree behind 0", [&] { LowerMask(nullptr, tree_empty, &plan); }},
      {"tree behind 128k", [&] { LowerMask(nullptr, tree_late, &plan); }},
  };
  std::printf("Lowering a mask of 64 new tokens in microseconds, of %d\n", repetitions);
  std::printf("%-20s %8s   10%% - 90%%\n", "mask", "median");
  std::string rows;
  for (const auto& [name, lower] : subjects) {
    for (int i = 0; i < 20; ++i) lower();
    Samples samples;
    for (int i = 0; i < repetitions; ++i) samples.Add(kvctl_bench::Microseconds(lower));
    std::printf("%-20s %8.2f   %.2f - %.2f\n", name.c_str(), samples.Median(),
                samples.Quantile(0.1), samples.Quantile(0.9));
    rows += (rows.empty() ? "\n    \"" : ",\n    \"") + name + "\": " + samples.Json();
  }
  std::ofstream(path) << "{\n  \"benchmark\": \"mask_lowering\",\n  \"machine\": "
                      << kvctl_bench::MachineJson() << ",\n  \"masks\": {" << rows << "\n  }\n}\n";
  std::printf("Wrote %s\n", path);
  return 0;
}
