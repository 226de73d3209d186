#include <memory>
#include <random>
#include <utility>

#include "check.h"
#include "device_array.h"
#include "kernels/cuda/cache_device.h"
#include "kernels/cuda/device/resident_words.h"
#include "kernels/cuda/resident/apply_changes.cuh"
#include "kernels/cuda_plugin.h"
#include "kvctl/error.h"

namespace kvctl::cuda {
namespace {

/*! \brief Carries out a step's changes on the device. */
void Apply(const ResidentWords& words, const DeviceArray<int32_t>& device) {
  const DeviceArray<ChangedRun> runs(words.runs());
  const DeviceArray<int32_t> values(words.values());
  StepChanges changes{};
  changes.words = device.data();
  changes.runs = runs.data();
  changes.values = values.data();
  changes.num_runs = words.num_runs();
  Must(PrepareChanges());
  Must(ApplyChanges(changes, nullptr));
  Must(cudaStreamSynchronize(nullptr));
}

/*! \brief Steps of a batch that decodes: one new token of each sequence. */
class Decoding {
 public:
  /*! \param num_pages That the cache has; fewer than the tables name make its memory small. */
  Decoding(int32_t batch, int32_t kv, int32_t num_pages) : lengths_(batch, kv) {
    CudaCacheConfig config{};
    config.page = {kHeads, kPageSize, 64, DType::kFloat16};
    config.num_layers = 4;
    config.num_qo_heads = 4 * kHeads;
    config.num_pages = num_pages;
    config.max_query_tokens = batch;
    config.pages.resize(config.num_layers, nullptr);  // a step that only begins reads no pages
    cache_.reset(CreateCache(config));
    for (int32_t s = 0; s < batch; ++s) {
      lengths_[s] += 5 * s;
      ids_.push_back(1000 - s);
      tables_.emplace_back();
    }
  }

  /*! \brief Begins a step of the sequences [begin, end). */
  UploadState Step(int32_t begin, int32_t end) {
    StepPlan step;
    for (int32_t s = begin; s < end; ++s) {
      const int32_t key = lengths_[s]++;
      while (static_cast<int32_t>(tables_[s].size()) * kPageSize <= key) {
        tables_[s].push_back(num_pages_++);
      }
      SequencePlan plan{};
      plan.query_begin = s - begin;
      plan.num_query_tokens = plan.num_pending = 1;
      plan.num_committed = plan.next_position = key;
      plan.pages = tables_[s].data();
      step.slots.push_back(tables_[s].back() * kPageSize + key % kPageSize);
      step.positions.push_back(key);
      step.sequences.push_back(plan);
    }
    MaskTable masks;
    masks.Lower(nullptr, step, 4, kHeads);
    const DeviceArray<int32_t> positions(end - begin);
#ifdef KVCTL_CUDA_EMULATED
    emulate::FailCall(std::exchange(failing_call_, 0));
#endif
    cache_->BeginStep({step, ids_.data() + begin, masks, nullptr, positions.data(), nullptr, true},
                      nullptr);
    EXPECT(positions.Read() == step.positions);
    const UploadState state = cache_->CompareUploads(&step, nullptr);
    EXPECT_EQ(state.num_different, 0);
    return state;
  }
  /*! \brief Lets the call of that number fail in the next step. */
  void FailNext(int number) { failing_call_ = number; }
  /*! \brief Words in which the device and the host differ, where no step is in flight. */
  int64_t CountDifferent() const { return cache_->CompareUploads(nullptr, nullptr).num_different; }

  static constexpr int32_t kHeads = 2, kPageSize = 16;

 private:
  int failing_call_ = 0, num_pages_ = 0;
  std::vector<int32_t> lengths_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<int64_t> ids_;
  std::unique_ptr<CudaCache> cache_;
};

}  // namespace

TEST(TheDeviceHasTheHostsWordsAfterRandomSteps) {
  InEveryOrder([] {
    std::mt19937 rng(5);
    const auto below = [&](int32_t n) { return static_cast<int32_t>(rng() % n); };
    ResidentWords words(900);
    const DeviceArray<int32_t> device(std::vector<int32_t>(900, 0));
    std::vector<std::vector<int32_t>> rows(6);
    for (int32_t step = 0; step < 300; ++step) {
      for (std::vector<int32_t>& row : rows) {  // as page tables change
        const int32_t what = below(8);
        if (what < 3) row.resize(row.size() + below(9), below(1000));
        if (what == 3) row.resize(row.size() / 2);
        if (what == 4 && !row.empty()) row[below(static_cast<int32_t>(row.size()))] = below(1000);
        if (what == 5) row.assign(below(80), below(1000));
        if (row.size() > 200) row.clear();
      }
      words.BeginStep();
      std::vector<int32_t> places(rows.size(), -2);
      const auto keep = [&] {
        for (size_t i = 0; i < rows.size(); ++i) {
          if ((step + i) % 3 == 0) continue;  // not in this step
          places[i] = words.Keep(RowKind::kPages, static_cast<int64_t>(i), rows[i].data(),
                                 static_cast<int64_t>(rows[i].size()));
        }
      };
      keep();
      if (words.overflowed()) {
        words.ForgetRows();
        words.BeginStep();
        keep();
      }
      EXPECT(device.Read() == words.words());
      if (words.overflowed() || step % 5 == 4) continue;  // the step fails: nothing is sent
      Apply(words, device);
      words.Commit();
      const std::vector<int32_t> held = device.Read();
      EXPECT(held == words.words());
      for (size_t i = 0; i < rows.size(); ++i) {
        if (places[i] < 0) continue;
        EXPECT(std::vector<int32_t>(
                   held.begin() + places[i],
                   held.begin() + places[i] + static_cast<int64_t>(rows[i].size())) == rows[i]);
      }
    }
  });
}

TEST(AStepThatChangesNothingSendsNothing) {
  ResidentWords words(4000);
  std::vector<int32_t> row(2000);
  for (size_t i = 0; i < row.size(); ++i) row[i] = static_cast<int32_t>(i) + 1;
  const auto count = [&] {
    words.BeginStep();
    words.Keep(RowKind::kPages, 3, row.data(), static_cast<int64_t>(row.size()));
    words.Commit();
    return words.values().size();
  };
  EXPECT_EQ(count(), row.size());
  EXPECT_EQ(count(), size_t{0});
  EXPECT_EQ(words.num_runs(), 0);
  row[1000] = -1;
  EXPECT_EQ(count(), size_t{1});
  row[3] = row[5] = row[1999] = -1;  // the first two become one run
  EXPECT_EQ(count(), size_t{4});
  EXPECT_EQ(words.num_runs(), 2);
}

TEST(RowsThatFindNoRoomAreSaidToOverflow) {
  ResidentWords words(100);
  const std::vector<int32_t> row(60, 7);
  words.BeginStep();
  EXPECT(words.Keep(RowKind::kPages, 0, row.data(), 60) >= 0);
  EXPECT_EQ(words.Keep(RowKind::kPages, 1, row.data(), 60), -1);
  EXPECT(words.overflowed());
  EXPECT_EQ(words.num_needed(), 2 * ResidentWords::Room(60));
  words.ForgetRows();
  words.BeginStep();
  EXPECT_EQ(words.Keep(RowKind::kPages, 1, row.data(), 60), 0);
  EXPECT(!words.overflowed());
}

// Negative controls: what a missed or a lost change would leave behind is seen.
TEST(AChangeThatDoesNotReachTheDeviceIsFound) {
  ResidentWords words(64);
  const DeviceArray<int32_t> device(std::vector<int32_t>(64, 0));
  const std::vector<int32_t> row(20, 7);
  words.BeginStep();
  words.Keep(RowKind::kPages, 0, row.data(), 20);
  words.Commit();  // nothing was sent
  EXPECT(device.Read() != words.words());
  Apply(words, device);
  EXPECT(device.Read() == words.words());
  const int32_t wrong = 8;
  Must(cudaMemcpyAsync(device.data() + 9, &wrong, sizeof(wrong), cudaMemcpyHostToDevice, nullptr));
  EXPECT(device.Read() != words.words());
}

TEST(ADecodeStepSendsBytesOfItsSequencesAndNotOfItsPages) {
  for (const int32_t batch : {1, 8, 32}) {
    std::vector<int64_t> totals;
    for (const int32_t kv : {1024, 8192, 32768}) {
      Decoding decoding(batch, kv, batch * (kv / Decoding::kPageSize + 64));
      const int64_t first = decoding.Step(0, batch).num_bytes;
      EXPECT(first > int64_t{4} * batch * kv / Decoding::kPageSize);  // all tables
      int64_t total = 0;
      for (int i = 0; i < 64; ++i) {
        const int64_t bytes = decoding.Step(0, batch).num_bytes;
        EXPECT(bytes <= 1500 + 400 * batch);
        total += bytes;
      }
      totals.push_back(total);
    }
    EXPECT(totals[2] < totals[0] + totals[0] / 4);
  }
}

TEST(AStepThatOutgrowsTheMemoryMovesIt) {
  Decoding decoding(64, 20000, 16);
  const UploadState few = decoding.Step(0, 4), many = decoding.Step(0, 64);
  EXPECT(many.num_words > few.num_words);
  EXPECT(many.num_bytes > 64 * 4 * 20000 / Decoding::kPageSize);
  const UploadState next = decoding.Step(0, 64);
  EXPECT_EQ(next.num_words, many.num_words);
  EXPECT(next.num_bytes < 1500 + 400 * 64);
}

TEST(SequencesThatLeaveMakeRoomForOthers) {
  Decoding decoding(40, 32000, 16);  // no more than 26 tables fit
  const int64_t num_words = decoding.Step(0, 20).num_words;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(decoding.Step(20, 40).num_words, num_words);
    EXPECT(decoding.Step(20, 40).num_bytes < 1500 + 400 * 20);
    EXPECT(decoding.Step(0, 20).num_bytes > 20 * 4 * 32000 / Decoding::kPageSize);
  }
}

#ifdef KVCTL_CUDA_EMULATED
TEST(AStepWhoseCallsFailLeavesBothSidesEqual) {
  for (int number = 1; number <= 8; ++number) {
    Decoding decoding(64, 20000, 16);
    decoding.Step(0, 4);
    bool failed = false;
    decoding.FailNext(number);
    try {
      decoding.Step(0, 64);  // which moves
    } catch (const Error&) {
      failed = true;
    }
    emulate::FailCall(0);
    EXPECT(failed || number > 5);
    EXPECT_EQ(decoding.CountDifferent(), 0);
    decoding.Step(0, 64);
    decoding.Step(10, 20);
  }
}
#endif

}  // namespace kvctl::cuda
