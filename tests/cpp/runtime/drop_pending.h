/*!
 * \file drop_pending.h
 * \brief Dropping the pending nodes of many sequences while another thread asks.
 */
#ifndef KVCTL_TESTS_RUNTIME_DROP_PENDING_H_
#define KVCTL_TESTS_RUNTIME_DROP_PENDING_H_

#include <tvm/ffi/error.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "kvctl/step_request.h"

constexpr int64_t kDropSequences = 256;

/*! \brief Gives every sequence of a cache or a state a pending node. */
template <typename Store>
void Draft(const Store& store) {
  std::vector<kvctl::StepRequest> requests(kDropSequences);
  for (int64_t id = 0; id < kDropSequences; ++id) {
    requests[id].seq_id = id;
    requests[id].append_length = 1;
    requests[id].pending = true;
  }
  store->BeginForward(requests);
  store->EndForward();
}

template <typename Store>
int64_t NumDrafted(const Store& store) {
  int64_t drafted = 0;
  for (int64_t id = 0; id < kDropSequences; ++id) drafted += store->PendingLength(id);
  return drafted;
}

/*!
 * \brief How many calls of drop() dropped some sequences' nodes and not all, or the other way
 * round, while another thread called ask(), which takes the lock.
 */
template <typename Store, typename Drop, typename Ask>
int HalvesOfDrop(const Store& store, Drop drop, Ask ask) {
  constexpr int kRounds = 300;
  std::atomic<int> begun{0}, asked{0}, dropped{0}, ended{0};  // the rounds that have
  std::thread other([&] {
    for (int round = 1; round <= kRounds; ++round) {
      while (begun < round) std::this_thread::yield();
      // With pauses of a few microseconds: a call that takes the lock many times gets half way.
      for (int question = 0; dropped < round; ++question) {
        asked = round;
        for (int pause = 0; pause < 100 * (1 + question % 16) && dropped < round; ++pause) continue;
        try {
          ask();
        } catch (const tvm::ffi::Error&) {  // the store was in use
        }
      }
      ended = round;
    }
  });
  int halves = 0;
  for (int round = 1; round <= kRounds; ++round) {
    if (NumDrafted(store) == 0) Draft(store);
    begun = round;
    while (asked < round) std::this_thread::yield();
    bool happened = true;
    try {
      drop();
    } catch (const tvm::ffi::Error&) {
      happened = false;
    }
    dropped = round;
    while (ended < round) std::this_thread::yield();
    if (NumDrafted(store) != (happened ? 0 : kDropSequences)) ++halves;
  }
  other.join();
  return halves;
}

#endif  // KVCTL_TESTS_RUNTIME_DROP_PENDING_H_
