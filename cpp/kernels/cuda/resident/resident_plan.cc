#include "kernels/cuda/resident/resident_plan.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/cuda/resident/apply_changes.cuh"
#include "kvctl/error.h"

namespace kvctl::cuda {
namespace {

constexpr int64_t kMostBytes = std::numeric_limits<int32_t>::max() - 64;

int64_t RoundUp(int64_t bytes) { return (bytes + 255) / 256 * 256; }

void ReadBack(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "reading a plan");
  Check(cudaStreamSynchronize(stream), "reading a plan");
}

}  // namespace

ResidentPlan::ResidentPlan(const PlanShape& shape, size_t arena_bytes, int64_t num_words)
    : plan_(shape), words_(num_words), arena_bytes_(RoundUp(arena_bytes)) {
  Check(PrepareChanges(), "loading the kernels");
  memory_.Reserve(arena_bytes_ + words_.size() * sizeof(int32_t));
  ClearWords(nullptr);
  Check(cudaStreamSynchronize(nullptr), "clearing a plan");
}

void ResidentPlan::Build(const CudaStep& step) {
  words_.BeginStep();
  const ResidentRows rows{&words_, static_cast<int32_t>(arena_bytes_), step.seq_ids};
  plan_.Build(step.plan, step.masks, step.rope, step.sinks, step.shares, &rows);
}

void ResidentPlan::LayOut(const CudaStep& step, bool fixed, cudaStream_t stream) {
  Build(step);
  if (words_.overflowed()) {  // because of rows that are not of this step, perhaps
    words_.ForgetRows();
    Build(step);
  }
  if (!Fits()) {
    const int64_t words = words_.num_needed() * static_cast<int64_t>(sizeof(int32_t));
    if (fixed) {
      Throw(ErrorKind::kRuntime, "the step's plan takes ", plan_.num_bytes(), " and ", words,
            " bytes and would move, but recorded graphs read it where it is, in ", arena_bytes_,
            " and ", words_.size() * sizeof(int32_t),
            " bytes: call forget_graphs() and record them again");
    }
    Move(stream);
    Build(step);
  }
  if (!cleared_) ClearWords(stream);
}

void ResidentPlan::Move(cudaStream_t stream) {
  const auto grown = [](int64_t size, int64_t needed) {
    return needed <= size ? size : needed + needed / 2;
  };
  const int64_t arena_bytes = RoundUp(grown(arena_bytes_, plan_.num_bytes()));
  const int64_t num_words = grown(words_.size(), words_.num_needed());
  const int64_t bytes = arena_bytes + num_words * static_cast<int64_t>(sizeof(int32_t));
  if (bytes > kMostBytes) Throw(ErrorKind::kValue, "the plan of a step does not fit 2 GiB");
  std::vector<int32_t> words(num_words, 0);
  memory_.Reserve(bytes);
  cleared_ = false;
  arena_bytes_ = arena_bytes;
  words_.Replace(std::move(words));
  ClearWords(stream);
}

void ResidentPlan::ClearWords(cudaStream_t stream) {
  Check(cudaMemsetAsync(device_words(), 0, words_.size() * sizeof(int32_t), stream),
        "clearing a plan");
  cleared_ = true;
}

void ResidentPlan::Send(const CudaStep& step, cudaStream_t stream) {
  const size_t run_bytes = words_.runs().size() * sizeof(ChangedRun);
  const size_t value_bytes = words_.values().size() * sizeof(int32_t);
  const Upload::Part arena{plan_.arena().data(), static_cast<size_t>(plan_.num_bytes())};
  const Upload::Part runs{words_.runs().data(), run_bytes};
  const Upload::Part values{words_.values().data(), value_bytes};
  const char* changed = nullptr;
  if (plan_.num_bytes() + static_cast<int64_t>(run_bytes + value_bytes) <= arena_bytes_) {
    memory_.Copy({arena, runs, values}, stream);
    changed = memory_.As<char>() + plan_.num_bytes();
  } else {
    large_changes_.Copy({runs, values}, stream);
    memory_.Copy({arena}, stream);
    changed = large_changes_.As<char>();
  }
  num_bytes_ = plan_.num_bytes() + static_cast<int64_t>(run_bytes + value_bytes);
  const auto part = [&](int32_t offset) {
    return reinterpret_cast<const int32_t*>(memory_.As<char>() + offset);
  };
  StepChanges changes{};
  changes.words = device_words();
  changes.runs = reinterpret_cast<const ChangedRun*>(changed);
  changes.values = reinterpret_cast<const int32_t*>(changed + run_bytes);
  changes.num_runs = words_.num_runs();
  changes.num_positions = step.plan.num_query_tokens();
  changes.positions = part(plan_.header().positions);
  changes.positions_copy = step.positions;
  if (step.sinks != nullptr) {
    changes.sink_positions = part(plan_.header().sink_positions);
    changes.sink_positions_copy = step.sinks->device_positions;
  }
  Check(ApplyChanges(changes, stream), "beginning a step");
  words_.Commit();
}

UploadState ResidentPlan::Compare(const StepPlan* step, cudaStream_t stream) const {
  UploadState uploads{num_bytes_, words_.size(), 0, reinterpret_cast<uintptr_t>(device_words())};
  std::vector<int32_t> held(words_.size());
  ReadBack(held.data(), device_words(), held.size() * sizeof(int32_t), stream);
  // Where clearing failed after a move, the host takes the words to hold nothing known.
  for (size_t i = 0; cleared_ && i < held.size(); ++i) {
    uploads.num_different += held[i] != words_.words()[i];
  }
  if (step == nullptr) return uploads;
  // What attention finds, from the header on.
  PlanHeader on_device;
  ReadBack(&on_device, header(), sizeof(on_device), stream);
  std::vector<PlanSequence> sequences(step->sequences.size());
  ReadBack(sequences.data(), memory_.As<char>() + on_device.sequences,
           sequences.size() * sizeof(PlanSequence), stream);
  const auto count = [&](int32_t offset, const int32_t* values, int32_t size) {
    const int64_t first = (offset - arena_bytes_) / static_cast<int64_t>(sizeof(int32_t));
    for (int32_t i = 0; i < size; ++i) uploads.num_different += held.at(first + i) != values[i];
  };
  for (size_t s = 0; s < sequences.size(); ++s) {
    const SequencePlan& of = step->sequences[s];
    const int32_t page_size = plan_.shape().page_size;
    count(sequences[s].page_table, of.pages, (of.kv_len() + page_size - 1) / page_size);
    if (of.committed_positions != nullptr) {
      count(sequences[s].committed_positions, of.committed_positions, of.num_committed);
    }
  }
  return uploads;
}

}  // namespace kvctl::cuda
