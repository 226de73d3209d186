/*!
 * \file kernels/cpu/sampling/verify_parallel.h
 * \brief Shares the sequences of a batch out to threads, or the vocabulary of one that is left
 * over.
 */
#ifndef KVCTL_KERNELS_CPU_SAMPLING_VERIFY_PARALLEL_H_
#define KVCTL_KERNELS_CPU_SAMPLING_VERIFY_PARALLEL_H_

#include <cstdint>
#include <functional>

#include "core/sampling/distribution.h"

namespace kvctl {

/*!
 * \brief Calls work(vocab, next) in one or more threads; next() gives the items in [0, count), then
 * -1.
 *
 * With enough items each thread takes items one by one, whole. What does not divide evenly is done
 * by all threads together, block of vocabulary by block. Small jobs stay on the calling thread.
 *
 * \param nanoseconds what one thread would need for all of it, roughly.
 * \param name what an item is called in errors.
 * \throws Error of the first item that throws one, with "name index: " before its message.
 */
void ForItems(int32_t vocab_size, int64_t count, double nanoseconds, const char* name,
              const std::function<void(const VocabContext& vocab,
                                       const std::function<int64_t()>& next)>& work);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_SAMPLING_VERIFY_PARALLEL_H_
