#include "kernels/cuda/verify/row_plan.h"

#include <algorithm>

#include "core/support/exact_math.h"

namespace kvctl::cuda {

float RowPlan::Scale(const Sampling& sampling) {
  const double temperature = sampling.temperature == 0 ? 1.0 : sampling.temperature;
  return static_cast<float>(std::min(kvctl::kLog2E / temperature, 1e30));
}

PlanList RowPlan::AddCounts(Counts counts) {
  std::sort(counts.begin(), counts.end());
  std::vector<TokenCount> list;
  list.reserve(counts.size());
  for (const auto& [token, count] : counts) list.push_back({token, count});
  return {AppendTo(&arena_, list.data(), list.size()), static_cast<int32_t>(list.size())};
}

int32_t RowPlan::AddProcessing(const Sampling& sampling, const Counts& counts) {
  std::vector<TokenBias> bias;
  bias.reserve(sampling.logit_bias.size());
  for (const auto& [token, value] : sampling.logit_bias) bias.push_back({token, value});
  std::stable_sort(bias.begin(), bias.end(),
                   [](const TokenBias& a, const TokenBias& b) { return a.token < b.token; });
  RowProcessing processing{};
  processing.penalties = {sampling.repetition_penalty, sampling.presence_penalty,
                          sampling.frequency_penalty};
  processing.top_k = sampling.top_k;
  processing.top_p = sampling.top_p;
  processing.min_p = sampling.min_p;
  processing.scale = Scale(sampling);
  processing.bias = {AppendTo(&arena_, bias.data(), bias.size()),
                     static_cast<int32_t>(bias.size())};
  processing.counts = AddCounts(counts);
  processing_.push_back(processing);
  return static_cast<int32_t>(processing_.size()) - 1;
}

int32_t RowPlan::AddLogits(const void* values, DType type, float scale) {
  jobs_.push_back({values, -1, scale, type, 0, 0});
  return num_jobs() - 1;
}

int32_t RowPlan::AddProcessed(const RowInput& row, const Sampling& sampling, int32_t processing,
                              const Counts& counts) {
  ProcessedRow processed{};
  processed.values = row.values;
  processed.type = row.type;
  processed.processing = processing;
  processed.scratch_row = num_processed();
  processed.job = num_jobs();
  processed.bitmask = -1;
  if (row.bitmask != nullptr) {
    const size_t words = (static_cast<size_t>(vocab_size_) + 31) / 32;
    processed.bitmask = AppendTo(&arena_, row.bitmask, words);
  }
  processed.cuts = Cuts(sampling);
  cuts_ |= processed.cuts != 0;
  processed.counts = AddCounts(counts);
  processed_.push_back(processed);
  jobs_.push_back({nullptr, processed.scratch_row, Scale(sampling), DType::kFloat32, 0, 0});
  return processed.job;
}

int32_t RowPlan::AddDistribution(const void* values, bool f64) {
  jobs_.push_back({values, -1, 0, DType::kFloat32, 1, f64});
  return num_jobs() - 1;
}

RowHeader RowPlan::Finish() {
  return {AppendTo(&arena_, jobs_.data(), jobs_.size()),
          AppendTo(&arena_, processing_.data(), processing_.size()),
          AppendTo(&arena_, processed_.data(), processed_.size())};
}

}  // namespace kvctl::cuda
