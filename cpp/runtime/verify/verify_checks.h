/*!
 * \file runtime/verify/verify_checks.h
 * \brief Checks that verifying and drafting share.
 */
#ifndef KVCTL_RUNTIME_VERIFY_VERIFY_CHECKS_H_
#define KVCTL_RUNTIME_VERIFY_VERIFY_CHECKS_H_

#include <cstdint>
#include <vector>

#include "kvctl/dtype.h"
#include "kvctl/error.h"
#include "kvctl/sampling.h"

namespace kvctl {

/*! \throws Error kValue unless low <= value <= high. */
int64_t InRange(int64_t value, int64_t low, int64_t high, const char* name);

/*! \brief The size of a vocabulary. \throws Error kValue for one that is not supported. */
int32_t CheckVocabSize(int64_t size);

/*! \brief The position of a root, which Philox holds in 32 bits. */
uint32_t CheckRootPosition(int64_t position, int64_t sequence, int64_t least);

/*! \throws Error kValue unless there is one for all or one for each; and as Sampling::Check. */
void CheckSamplings(const std::vector<Sampling>& samplings, int64_t size, int32_t vocab_size);

/*! \throws Error kType for an element type that logits, or distributions, cannot have. */
void CheckRowType(DType dtype, bool distribution, const char* what);

/*! \brief The stride of rows, 0 where they are contiguous. \throws Error kValue for less. */
int64_t CheckStride(int64_t stride, int64_t vocab_size);

/*! \throws Error kValue unless there are `size` values, or none. */
template <typename T>
void CheckOneForEach(const std::vector<T>& values, int64_t size, const char* what) {
  const auto given = static_cast<int64_t>(values.size());
  if (given == 0 || given == size) return;
  Throw(ErrorKind::kValue, what, " must have one entry for each of ", size, ", got ", given);
}

/*!
 * \brief Checks what names the random numbers of a call.
 * \throws Error kValue for another number of entries, or none where tokens are sampled.
 */
void CheckStreams(const std::vector<uint64_t>& request_ids,
                  const std::vector<int64_t>& root_positions, int64_t size, bool random);

/*! \brief Whether any request samples at a temperature above 0. */
bool AnyRandom(const std::vector<Sampling>& samplings);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_VERIFY_VERIFY_CHECKS_H_
