/*!
 * \file core/verify/share_items.h
 * \brief How the items of a batch are shared among threads. Core itself starts no threads.
 */
#ifndef KVCTL_CORE_VERIFY_SHARE_ITEMS_H_
#define KVCTL_CORE_VERIFY_SHARE_ITEMS_H_

#include <cstdint>
#include <functional>

#include "core/sampling/distribution.h"

namespace kvctl {

/*! \brief The size of a batch, for deciding how many threads it needs. */
struct ItemBatch {
  int32_t vocab_size;
  int64_t count;       //!< items
  double nanoseconds;  //!< a rough estimate of the time that one thread needs for all items
  const char* name;    //!< what an error message calls an item, such as "sequence"
};

/*!
 * \brief Processes items. next() returns the index of the next item, or -1 when none is left.
 *
 * It may run in several threads at once; each call has its own `next`.
 */
using ItemWork =
    std::function<void(const VocabContext& vocab, const std::function<int64_t()>& next)>;

/*!
 * \brief Runs `work` until every item of a batch is processed.
 *
 * A kernel library provides an implementation with threads (kernels/sampling.h).
 *
 * \throws Error of the item with the lowest index that throws one, with "name index: " before its
 * message.
 */
using ShareItems = std::function<void(const ItemBatch& batch, const ItemWork& work)>;

}  // namespace kvctl

#endif  // KVCTL_CORE_VERIFY_SHARE_ITEMS_H_
