#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <atomic>
#include <thread>
#include <vector>

#include "check.h"
#include "kvctl/paged_kv_cache.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;

constexpr int64_t kSequences = 256;

PagedKVCache MakeCache() {
  PagedKVCacheConfig config;
  config.num_layers = config.num_qo_heads = config.num_kv_heads = 1;
  config.head_dim = 16;
  config.page_size = 4;
  config.num_pages = 2 * kSequences;
  PagedKVCache cache = PagedKVCache::Create(config);
  for (int64_t id = 0; id < kSequences; ++id) cache->AddSequence(id);
  return cache;
}

/*! \brief Gives every sequence a pending node. */
void Draft(const PagedKVCache& cache) {
  std::vector<StepRequest> requests(kSequences);
  for (int64_t id = 0; id < kSequences; ++id) {
    requests[id].seq_id = id;
    requests[id].append_length = 1;
    requests[id].pending = true;
  }
  cache->BeginForward(requests);
  cache->EndForward();
}

int64_t NumDrafted(const PagedKVCache& cache) {
  int64_t drafted = 0;
  for (int64_t id = 0; id < kSequences; ++id) drafted += cache->PendingLength(id);
  return drafted;
}

}  // namespace

TEST(DropPendingOfAllSequencesHappensOrNotWhileAnotherThreadAsks) {
  constexpr int kRounds = 300;
  const PagedKVCache cache = MakeCache();
  const ffi::Function drop = ffi::Function::GetGlobalRequired("kvctl.cache.drop_pending");
  std::atomic<int> begun{0}, asked{0}, dropped{0}, ended{0};  // the rounds that have
  std::thread other([&] {
    for (int round = 1; round <= kRounds; ++round) {
      while (begun < round) std::this_thread::yield();
      // With pauses of a few microseconds: a call that takes the lock many times gets half way.
      for (int question = 0; dropped < round; ++question) {
        asked = round;
        for (int pause = 0; pause < 100 * (1 + question % 16) && dropped < round; ++pause) continue;
        try {
          cache->InForward();
        } catch (const ffi::Error&) {  // the cache was in use
        }
      }
      ended = round;
    }
  });
  int halves = 0;
  for (int round = 1; round <= kRounds; ++round) {
    if (NumDrafted(cache) == 0) Draft(cache);
    begun = round;
    while (asked < round) std::this_thread::yield();
    bool happened = true;
    try {
      drop(cache, ffi::Optional<ffi::Shape>());
    } catch (const ffi::Error&) {
      happened = false;
    }
    dropped = round;
    while (ended < round) std::this_thread::yield();
    if (NumDrafted(cache) != (happened ? 0 : kSequences)) ++halves;
  }
  other.join();
  EXPECT_EQ(halves, 0);
}

}  // namespace kvctl
