/*!
 * \file core/cache/page_pool.h
 * \brief The pages of a cache: which are free, and how many references each has.
 */
#ifndef KVCTL_CORE_CACHE_PAGE_POOL_H_
#define KVCTL_CORE_CACHE_PAGE_POOL_H_

#include <cstdint>
#include <vector>

namespace kvctl {

/*! \brief Reference counts over a fixed number of pages. Pages are named by their index. */
class PagePool {
 public:
  explicit PagePool(int32_t num_pages);

  int32_t num_pages() const { return static_cast<int32_t>(ref_counts_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t ref_count(int32_t page) const { return ref_counts_[page]; }
  bool shared(int32_t page) const { return ref_counts_[page] > 1; }

  /*! \brief Takes a free page with one reference. The caller has checked num_free() before. */
  int32_t Take();
  /*! \brief Adds a reference. */
  void Retain(int32_t page) { ++ref_counts_[page]; }
  /*! \brief Drops a reference; a page without references is free. */
  void Release(int32_t page);
  /*! \brief Frees every page. */
  void Clear();

 private:
  std::vector<int32_t> ref_counts_;
  std::vector<int32_t> free_;  // a stack whose capacity is num_pages: Release never allocates
};

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_PAGE_POOL_H_
