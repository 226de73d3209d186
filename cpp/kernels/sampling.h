/*!
 * \file kernels/sampling.h
 * \brief The vocabulary loops and the threads that core/verify runs on.
 */
#ifndef KVCTL_KERNELS_SAMPLING_H_
#define KVCTL_KERNELS_SAMPLING_H_

#include "core/sampling/vocab_ops.h"
#include "core/verify/share_items.h"

namespace kvctl {

/*! \brief The loops for the widest instruction set of this machine. */
const VocabOps& CpuVocabOps();

/*!
 * \brief ShareItems with OpenMP threads and CpuVocabOps.
 *
 * With enough items each thread takes complete items, one by one. The items that do not fill a
 * round of all threads are split: all threads work on one item, each on other blocks of the
 * vocabulary. Small batches stay on the calling thread.
 */
void ShareItemsAmongThreads(const ItemBatch& batch, const ItemWork& work);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_SAMPLING_H_
