/*!
 * \file core/cache/page_reservation.h
 * \brief Counts the pages that a batch of writes will need, before the first write.
 */
#ifndef KVCTL_CORE_CACHE_PAGE_RESERVATION_H_
#define KVCTL_CORE_CACHE_PAGE_RESERVATION_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/support/ref_counted_pool.h"
#include "kvctl/error.h"

namespace kvctl {

/*!
 * \brief Counts the pages that writers will take from the pool, in the order of their writes.
 *
 * Of the writers that share a page, all but the last copy it. A copy releases the original.
 */
class PageReservation {
 public:
  explicit PageReservation(const RefCountedPool& pool) : pool_(pool) {}

  void NeedNew(int32_t count) { needed_ += count; }
  /*! \brief Adds a writer to `page`, which gets `extra_holders` more holders before the write. */
  void NeedWritable(int32_t page, int32_t extra_holders) {
    added_.insert(added_.end(), extra_holders, page);  // kept for the writers that follow
    const auto added = std::count(added_.begin(), added_.end(), page);
    const auto released = std::count(released_.begin(), released_.end(), page);
    if (pool_.ref_count(page) + added - released <= 1) return;
    released_.push_back(page);
    ++needed_;
  }
  /*! \throws Error kOutOfPages if the pool has fewer free pages than were counted. */
  void Check(const char* operation) const {
    if (needed_ <= pool_.num_free()) return;
    Throw(ErrorKind::kOutOfPages, operation, " needs ", needed_, " pages and ", pool_.num_free(),
          " of ", pool_.size(), " are free");
  }

 private:
  const RefCountedPool& pool_;
  int64_t needed_ = 0;
  std::vector<int32_t> added_;
  std::vector<int32_t> released_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_PAGE_RESERVATION_H_
