/*!
 * \file benchmarks/cpp/bookkeeping.cc
 * \brief Host memory of the caches beside their pages: per page, per sequence, per checkpoint.
 *
 * Every operator new of the process is counted. K/V pages are tensors, which TVM allocates in
 * another way, so they do not count. TVM's cache keeps more tables in tensors, so its figures are
 * lower bounds.
 */
#include <kvctl/api.h>
#include <kvctl/paged_kv_cache.h>
#include <malloc.h>

#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "report.h"
#include "tvm_cache.h"

namespace {

int64_t live_bytes = 0;

void* Counted(size_t size) {
  void* memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  live_bytes += static_cast<int64_t>(malloc_usable_size(memory));
  return memory;
}

void Uncount(void* memory) {
  live_bytes -= memory == nullptr ? 0 : static_cast<int64_t>(malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace

void* operator new(size_t size) { return Counted(size); }
void* operator new[](size_t size) { return Counted(size); }
void operator delete(void* memory) noexcept { Uncount(memory); }
void operator delete[](void* memory) noexcept { Uncount(memory); }
void operator delete(void* memory, size_t) noexcept { Uncount(memory); }
void operator delete[](void* memory, size_t) noexcept { Uncount(memory); }

namespace {

using tvm::ffi::Shape;
using tvm::runtime::vm::AttentionKVCache;
using Create = AttentionKVCache (*)(const kvctl_bench::CacheSize&);

constexpr int64_t kPageSize = 16;
constexpr int64_t kSequences = 1000;
constexpr int64_t kChunk = 2048;

AttentionKVCache CreateOwn(const kvctl_bench::CacheSize& size) {
  return kvctl_bench::CreateOwnCache(size);
}

void Append(const AttentionKVCache& cache, int64_t tokens) {
  auto* mutable_cache = const_cast<tvm::runtime::vm::AttentionKVCacheObj*>(cache.operator->());
  for (int64_t seq = 0; seq < kSequences; ++seq) {
    mutable_cache->BeginForward(Shape({seq}), Shape({tokens}));
    mutable_cache->EndForward();
  }
}

/*! \brief Returns the bytes of each kind of entry. */
std::vector<std::pair<std::string, double>> Measure(Create create, bool own) {
  std::vector<std::pair<std::string, double>> bytes;
  const int64_t small = 1 << 15, large = 1 << 17;  // pages
  double page;
  {
    const int64_t start = live_bytes;
    AttentionKVCache one = create({kSequences, small * kPageSize, kChunk, kPageSize});
    const int64_t between = live_bytes;
    AttentionKVCache other = create({kSequences, large * kPageSize, kChunk, kPageSize});
    page = double((live_bytes - between) - (between - start)) / (large - small);
    bytes.push_back({"page of the cache", page});
  }
  AttentionKVCache cache = create({kSequences, large * kPageSize, kChunk, kPageSize});
  auto* object = const_cast<tvm::runtime::vm::AttentionKVCacheObj*>(cache.operator->());
  int64_t before = live_bytes;
  for (int64_t seq = 0; seq < kSequences; ++seq) object->AddSequence(seq);
  bytes.push_back({"empty sequence", double(live_bytes - before) / kSequences});
  Append(cache, kPageSize);
  before = live_bytes;
  Append(cache, 64 * kPageSize);
  bytes.push_back({"page of a sequence", double(live_bytes - before) / kSequences / 64});
  if (own) {
    auto* kv = static_cast<kvctl::PagedKVCacheObj*>(object);
    std::vector<kvctl::CacheCheckpoint> checkpoints(kSequences);
    before = live_bytes;
    for (int64_t seq = 0; seq < kSequences; ++seq) checkpoints[seq] = kv->MakeCheckpoint(seq);
    bytes.push_back({"checkpoint", double(live_bytes - before) / kSequences});
    checkpoints.clear();
    std::vector<int32_t> keep;
    for (int32_t token = 0; token < 32 * kPageSize; ++token) keep.push_back(2 * token);
    before = live_bytes;
    for (int64_t seq = 0; seq < kSequences; ++seq) kv->Evict(seq, keep, false);
    bytes.push_back(
        {"token after eviction", double(live_bytes - before) / kSequences / keep.size()});
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  const char* path = argc > 1 ? argv[1] : "bookkeeping.json";
  kvctl::Init();
  std::string json;
  std::printf("Host bytes of bookkeeping, by what they are for\n");
  for (bool own : {false, true}) {
    const char* name = own ? "kvctl" : "tvm";
    json += std::string(own ? ",\n" : "\n") + "  \"" + name + "\": {";
    bool first = true;
    for (const auto& [what, count] : Measure(own ? CreateOwn : kvctl_bench::CreateTVMCache, own)) {
      std::printf("%-6s %-20s %9.1f\n", name, what.c_str(), count);
      json += (first ? "\"" : ", \"") + what + "\": " + std::to_string(count);
      first = false;
    }
    json += "}";
  }
  std::ofstream(path) << "{\n  \"benchmark\": \"bookkeeping\",\n  \"machine\": "
                      << kvctl_bench::MachineJson() << "," << json << "\n}\n";
  std::printf("Wrote %s\n", path);
  return 0;
}
