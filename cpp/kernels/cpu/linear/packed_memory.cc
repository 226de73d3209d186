#include "kernels/packed_memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

namespace kvctl {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSlab = size_t{32} << 20;
// From here on a weight has memory of its own: a part of its last huge page is a small loss.
constexpr size_t kLarge = size_t{8} << 20;
constexpr size_t kLine = 64;

constexpr size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

/*! \brief Weights one behind another. */
struct Slab {
  size_t used = 0;
  int64_t weights = 0;
};

struct Slabs {
  std::mutex mutex;
  std::map<uintptr_t, Slab> by_address;
  uintptr_t newest = 0;  //!< the slab that has room, or 0
};

/*! \brief Never destroyed: tensors may be freed while the process ends. */
Slabs& AllSlabs() {
  static auto* const slabs = new Slabs;
  return *slabs;
}

// Nobody would unlock it in a child that was forked while another thread had locked it.
const int at_fork =
    pthread_atfork([] { AllSlabs().mutex.lock(); }, [] { AllSlabs().mutex.unlock(); },
                   [] { AllSlabs().mutex.unlock(); });

void* NewHugePages(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kHugePage, RoundUp(bytes, kHugePage)) != 0) throw std::bad_alloc();
  madvise(memory, RoundUp(bytes, kHugePage), MADV_HUGEPAGE);  // a wish
  return memory;
}

}  // namespace

void* NewPackedMemory(size_t bytes) {
  if (bytes >= kLarge) return NewHugePages(bytes);
  // A line at least: what lies at the end of a slab would not be found in it.
  const size_t size = RoundUp(std::max<size_t>(bytes, 1), kLine);
  Slabs& slabs = AllSlabs();
  const std::lock_guard<std::mutex> lock(slabs.mutex);
  auto slab = slabs.by_address.find(slabs.newest);
  if (slab == slabs.by_address.end() || kSlab - slab->second.used < size) {
    void* memory = NewHugePages(kSlab);
    slab = slabs.by_address.emplace(reinterpret_cast<uintptr_t>(memory), Slab{}).first;
    slabs.newest = slab->first;
  }
  void* memory = reinterpret_cast<void*>(slab->first + slab->second.used);
  slab->second.used += size;
  ++slab->second.weights;
  return memory;
}

void FreePackedMemory(void* memory) {
  if (memory == nullptr) return;
  const auto address = reinterpret_cast<uintptr_t>(memory);
  Slabs& slabs = AllSlabs();
  {
    const std::lock_guard<std::mutex> lock(slabs.mutex);
    auto slab = slabs.by_address.upper_bound(address);
    if (slab != slabs.by_address.begin() && address - (--slab)->first < kSlab) {
      if (--slab->second.weights > 0) return;
      memory = reinterpret_cast<void*>(slab->first);
      if (slabs.newest == slab->first) slabs.newest = 0;
      slabs.by_address.erase(slab);
    }
  }
  std::free(memory);
}

}  // namespace kvctl
