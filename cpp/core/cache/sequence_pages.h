/*!
 * \file core/cache/sequence_pages.h
 * \brief The pages that sequences and their checkpoints hold, shared by reference count.
 */
#ifndef KVCTL_CORE_CACHE_SEQUENCE_PAGES_H_
#define KVCTL_CORE_CACHE_SEQUENCE_PAGES_H_

#include <cstdint>

#include "core/cache/checkpoint.h"
#include "core/cache/copy_plan.h"
#include "core/cache/sequence.h"
#include "core/support/ref_counted_pool.h"

namespace kvctl {

/*! \brief Hands out pages, shares them, and takes them back. */
class SequencePages {
 public:
  SequencePages(int32_t num_pages, int32_t page_size) : page_size_(page_size), pool_(num_pages) {}

  const RefCountedPool& pool() const { return pool_; }
  RefCountedPool& pool() { return pool_; }
  /*! \brief The pages that so many tokens need. */
  int32_t PagesFor(int32_t kv_len) const { return (kv_len + page_size_ - 1) / page_size_; }
  void Retain(int32_t page) {
    if (page >= 0) pool_.Retain(page);
  }
  void Release(int32_t page) {
    if (page >= 0) pool_.Release(page);
  }
  /*! \brief Releases the pages past the first `count`. */
  void ShrinkPages(Sequence* sequence, int32_t count);
  /*! \brief Keeps the first `kv_len` tokens and preserves checkpoints. */
  void TruncateKv(Sequence* sequence, int32_t kv_len);
  /*! \brief Replaces a shared page by a copy that only this sequence holds. */
  void CopyOnWrite(Sequence* sequence, int32_t page_index, CopyPlan* moves);
  /*! \brief Evicts the pages behind the window and its rollback window. */
  void EvictBehindWindow(Sequence* sequence);
  /*! \brief Whether a page lies entirely in the evicted range. */
  bool IsEvictedPage(const EvictedRange& evicted, int32_t page_index) const {
    return page_index * page_size_ >= evicted.begin && (page_index + 1) * page_size_ <= evicted.end;
  }

  /*! \brief Reserves capacity so that Preserve(sequence, kv_index) does not allocate. */
  void MakeRoomToPreserve(Sequence* sequence, int32_t kv_index);
  /*! \brief Makes checkpoints hold the pages they need from `kv_index` on. Call it before KV from
   * there on is overwritten or dropped. */
  void Preserve(Sequence* sequence, int32_t kv_index);
  /*! \brief How many checkpoints Preserve(sequence, kv_index) will make holders of a page. */
  int32_t NumNewHolders(const Sequence& sequence, int32_t kv_index, int32_t page_index) const;
  /*! \brief Releases what a checkpoint holds, and takes it off its sequence. */
  void Forget(Checkpoint* checkpoint);

 private:
  int32_t page_size_;
  RefCountedPool pool_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_SEQUENCE_PAGES_H_
