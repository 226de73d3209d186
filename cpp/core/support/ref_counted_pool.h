/*!
 * \file core/support/ref_counted_pool.h
 * \brief A fixed number of equal pieces of memory, by index: which are free, and who shares which.
 */
#ifndef KVCTL_CORE_SUPPORT_REF_COUNTED_POOL_H_
#define KVCTL_CORE_SUPPORT_REF_COUNTED_POOL_H_

#include <cstdint>
#include <vector>

namespace kvctl {

/*!
 * \brief Reference counts over the indices [0, size).
 *
 * The pages of a paged cache and the states of a recurrent state are such indices. The pool does
 * not know the memory behind them.
 */
class RefCountedPool {
 public:
  explicit RefCountedPool(int32_t size);

  int32_t size() const { return static_cast<int32_t>(ref_counts_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t ref_count(int32_t index) const { return ref_counts_[index]; }
  bool shared(int32_t index) const { return ref_counts_[index] > 1; }

  /*!
   * \brief Takes a free index with a reference count of 1.
   *
   * The caller has compared num_free() with all that it needs.
   */
  int32_t Take();
  /*! \brief Adds a reference. */
  void Retain(int32_t index) { ++ref_counts_[index]; }
  /*! \brief Removes a reference. An index without references is free. Does not allocate. */
  void Release(int32_t index);
  /*! \brief Frees every index. */
  void Clear();

 private:
  std::vector<int32_t> ref_counts_;
  std::vector<int32_t> free_;  // a stack with capacity for all, so that Release never allocates
};

}  // namespace kvctl

#endif  // KVCTL_CORE_SUPPORT_REF_COUNTED_POOL_H_
