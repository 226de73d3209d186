#include "runtime/support/step_partner.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "kvctl/error.h"

namespace kvctl {
namespace {

struct OpenStep {
  uint64_t id;
  StepPartner::Kind kind;
  std::thread::id thread;
  StepLengths lengths;
};

/*! \brief The steps in flight of all caches and states, and who belongs together. */
struct Steps {
  std::mutex mutex;
  std::vector<OpenStep> open;
  std::map<uint64_t, uint64_t> partners;  // both ways
};

Steps& TheSteps() {
  static Steps* steps = new Steps();  // never destroyed: others' destructors may come later
  return *steps;
}

std::atomic<int64_t> num_states{0};

uint64_t NextId() {
  static std::atomic<uint64_t> next{1};
  return next++;
}

/*! \brief Whether two steps may be the two halves of one forward. */
bool Together(const OpenStep& other, StepPartner::Kind kind, const StepLengths& step) {
  return other.kind != kind && other.thread == std::this_thread::get_id() &&
         other.lengths.seq_ids == step.seq_ids;
}

[[noreturn]] void ThrowDisagreement(int64_t id, int64_t cached, int64_t remembered) {
  constexpr const char* kEnd =
      ". Abort the other one's step first (kvctl.cache.abort_forward, "
      "kvctl.recurrent.abort_forward). "
      "kvctl.HybridCache and kvctl.ModelRunner keep the two in step by themselves";
  if (cached < remembered) {
    Throw(
        ErrorKind::kRuntime, "begin_forward: sequence ", id, " has ", cached,
        " tokens in the paged cache and ", remembered,
        " in the recurrent state that is forwarded with it: the cache was committed or rolled ",
        "back alone, and the state still remembers the tokens that went. Take them back from the ",
        "state: kvctl.recurrent.popn(state, ", id, ", ", remembered - cached,
        ") returns how many of the kept tokens have to run again; take as many from the cache ",
        "with vm.builtin.kv_state_popn and forward them again", kEnd);
  }
  Throw(
      ErrorKind::kRuntime, "begin_forward: sequence ", id, " has ", cached,
      " tokens in the paged cache and ", remembered,
      " in the recurrent state that is forwarded with it: the state was committed or rolled back ",
      "alone. Take ", cached - remembered, " tokens from the cache with vm.builtin.kv_state_popn",
      kEnd);
}

}  // namespace

StepPartner::StepPartner(Kind kind) : kind_(kind), id_(NextId()) {
  num_states += kind == Kind::kState;
}

StepPartner::~StepPartner() {
  num_states -= kind_ == Kind::kState;
  End();
  Steps& steps = TheSteps();
  std::lock_guard<std::mutex> lock(steps.mutex);
  auto it = steps.partners.find(id_);
  if (it == steps.partners.end()) return;
  const auto other = steps.partners.find(it->second);
  if (other != steps.partners.end() && other->second == id_) steps.partners.erase(other);
  steps.partners.erase(it);
}

bool StepPartner::MayHavePartner() const {
  return kind_ == Kind::kState || num_states.load(std::memory_order_relaxed) > 0;
}

void StepPartner::Check(const StepLengths& step) const {
  Steps& steps = TheSteps();
  std::lock_guard<std::mutex> lock(steps.mutex);
  const auto partner = steps.partners.find(id_);
  if (partner == steps.partners.end()) return;
  for (const OpenStep& other : steps.open) {
    if (other.id != partner->second || !Together(other, kind_, step)) continue;
    for (size_t i = 0; i < step.seq_ids.size(); ++i) {
      if (step.before[i] == other.lengths.before[i]) continue;
      const bool cache = kind_ == Kind::kCache;
      ThrowDisagreement(step.seq_ids[i], cache ? step.before[i] : other.lengths.before[i],
                        cache ? other.lengths.before[i] : step.before[i]);
    }
  }
}

void StepPartner::Begin(StepLengths step) {
  Steps& steps = TheSteps();
  std::lock_guard<std::mutex> lock(steps.mutex);
  for (const OpenStep& other : steps.open) {
    if (!Together(other, kind_, step) || other.lengths.appended != step.appended ||
        other.lengths.before != step.before) {
      continue;
    }
    steps.partners[id_] = other.id;
    steps.partners[other.id] = id_;
  }
  steps.open.push_back({id_, kind_, std::this_thread::get_id(), std::move(step)});
  is_open_ = true;
}

void StepPartner::End() noexcept {
  if (!is_open_) return;
  is_open_ = false;
  Steps& steps = TheSteps();
  std::lock_guard<std::mutex> lock(steps.mutex);
  auto& open = steps.open;
  open.erase(std::remove_if(open.begin(), open.end(),
                            [this](const OpenStep& step) { return step.id == id_; }),
             open.end());
}

}  // namespace kvctl
