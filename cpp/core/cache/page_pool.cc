#include "core/cache/page_pool.h"

#include "kvctl/error.h"

namespace kvctl {

PagePool::PagePool(int32_t num_pages) : ref_counts_(num_pages, 0) {
  free_.reserve(num_pages);
  Clear();
}

int32_t PagePool::Take() {
  if (free_.empty()) Throw(ErrorKind::kInternal, "a page was taken that was not reserved");
  const int32_t page = free_.back();
  free_.pop_back();
  ref_counts_[page] = 1;
  return page;
}

void PagePool::Release(int32_t page) {
  if (--ref_counts_[page] == 0) free_.push_back(page);
}

void PagePool::Clear() {
  free_.clear();
  for (int32_t page = num_pages() - 1; page >= 0; --page) {
    ref_counts_[page] = 0;
    free_.push_back(page);  // page 0 on top, to be taken first
  }
}

}  // namespace kvctl
