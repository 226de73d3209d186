#include "core/support/ref_counted_pool.h"

#include "kvctl/error.h"

namespace kvctl {

RefCountedPool::RefCountedPool(int32_t size) : ref_counts_(size, 0) {
  free_.reserve(size);
  Clear();
}

int32_t RefCountedPool::Take() {
  if (free_.empty()) Throw(ErrorKind::kInternal, "a page or state was taken without a reservation");
  const int32_t index = free_.back();
  free_.pop_back();
  ref_counts_[index] = 1;
  return index;
}

void RefCountedPool::Release(int32_t index) {
  if (--ref_counts_[index] == 0) free_.push_back(index);
}

void RefCountedPool::Clear() {
  free_.clear();
  for (int32_t index = size() - 1; index >= 0; --index) {
    ref_counts_[index] = 0;
    free_.push_back(index);  // index 0 on top, so that it is taken first
  }
}

}  // namespace kvctl
