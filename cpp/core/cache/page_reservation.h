/*!
 * \file core/cache/page_reservation.h
 * \brief How many pages a batch of writes will need, before any of them is done.
 */
#ifndef KVCTL_CORE_CACHE_PAGE_RESERVATION_H_
#define KVCTL_CORE_CACHE_PAGE_RESERVATION_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/cache/page_pool.h"
#include "kvctl/error.h"

namespace kvctl {

/*!
 * \brief Counts the pages that writers will take from the pool, in the order in which they will
 * write.
 *
 * Of the writers that share a page, each but the last copies it: a copy lets go of the original.
 */
class PageReservation {
 public:
  explicit PageReservation(const PagePool& pool) : pool_(pool) {}

  void NeedNew(int32_t count) { needed_ += count; }
  /*! \brief A writer into `page`, which gets `extra_holders` more holders before it is written. */
  void NeedWritable(int32_t page, int32_t extra_holders) {
    added_.insert(added_.end(), extra_holders, page);  // they stay for the writers that follow
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
          " of ", pool_.num_pages(), " are free");
  }

 private:
  const PagePool& pool_;
  int64_t needed_ = 0;
  std::vector<int32_t> added_;
  std::vector<int32_t> released_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_PAGE_RESERVATION_H_
