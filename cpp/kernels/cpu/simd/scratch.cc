#include "kernels/cpu/simd/scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace kvctl {
namespace {

struct Free {
  void operator()(void* bytes) const { std::free(bytes); }
};

}  // namespace

void* LinearScratch(size_t bytes) {
  thread_local std::unique_ptr<void, Free> kept;
  thread_local size_t size = 0;
  if (bytes > size) {
    size = 0;
    const size_t whole = (bytes + 63) / 64 * 64;
    kept.reset();
    kept.reset(std::aligned_alloc(64, whole));
    if (kept == nullptr) throw std::bad_alloc();
    size = whole;
  }
  return kept.get();
}

}  // namespace kvctl
