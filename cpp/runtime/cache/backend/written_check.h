/*!
 * \file runtime/cache/backend/written_check.h
 * \brief The check of kvctl/checking.h for K and V.
 */
#ifndef KVCTL_RUNTIME_CACHE_BACKEND_WRITTEN_CHECK_H_
#define KVCTL_RUNTIME_CACHE_BACKEND_WRITTEN_CHECK_H_

#include <cstdint>
#include <vector>

#include "kernels/kv_copy.h"
#include "runtime/cache/step/forward_step.h"

namespace kvctl {

/*! \brief K and V of a step's new tokens, and where they were written. */
struct WrittenRows {
  int64_t layer_id;
  const PageShape& shape;
  const void* pages;
  const std::vector<int32_t>& slots;
  KVRows k, v;  //!< what was written; rows without data were not
};

/*! \throws Error kValue that names the first value in the pages which is not finite. */
void CheckWritten(const ForwardStep& step, const WrittenRows& rows);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_BACKEND_WRITTEN_CHECK_H_
