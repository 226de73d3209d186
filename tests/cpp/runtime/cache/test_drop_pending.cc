#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include "check.h"
#include "kvctl/paged_kv_cache.h"
#include "runtime/drop_pending.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;

PagedKVCache MakeCache() {
  PagedKVCacheConfig config;
  config.num_layers = config.num_qo_heads = config.num_kv_heads = 1;
  config.head_dim = 16;
  config.page_size = 4;
  config.num_pages = 2 * kDropSequences;
  PagedKVCache cache = PagedKVCache::Create(config);
  for (int64_t id = 0; id < kDropSequences; ++id) cache->AddSequence(id);
  return cache;
}

}  // namespace

TEST(DropPendingOfAllSequencesHappensOrNotWhileAnotherThreadAsks) {
  const PagedKVCache cache = MakeCache();
  const ffi::Function drop = ffi::Function::GetGlobalRequired("kvctl.cache.drop_pending");
  const auto drop_all = [&] { drop(cache, ffi::Optional<ffi::Shape>()); };
  EXPECT_EQ(HalvesOfDrop(cache, drop_all, [&] { cache->InForward(); }), 0);
}

}  // namespace kvctl
