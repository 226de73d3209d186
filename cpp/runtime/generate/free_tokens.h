/*!
 * \file runtime/generate/free_tokens.h
 * \brief The room in a runner's cache.
 */
#ifndef KVCTL_RUNTIME_GENERATE_FREE_TOKENS_H_
#define KVCTL_RUNTIME_GENERATE_FREE_TOKENS_H_

#include <cstdint>
#include <limits>

#include "kvctl/model_runner.h"

namespace kvctl {

/*! \brief Tokens that the free pages of a runner's cache hold; any number if no layer attends. */
inline int64_t FreeTokens(const ModelRunner& runner) {
  if (!runner.cache().defined()) return std::numeric_limits<int32_t>::max();
  return int64_t{runner.cache()->GetNumAvailablePages()} * runner.cache()->config().page_size;
}

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_GENERATE_FREE_TOKENS_H_
