/*!
 * \file runtime/cache/window_pages.h
 * \brief Pages that sliding windows need in addition to the tokens that they show.
 */
#ifndef KVCTL_RUNTIME_CACHE_WINDOW_PAGES_H_
#define KVCTL_RUNTIME_CACHE_WINDOW_PAGES_H_

#include <cstdint>

#include "kvctl/paged_kv_cache.h"

namespace kvctl {

/*!
 * \brief Pages that a model's cache needs in addition if its sequences have windows.
 *
 * Each sequence keeps its rollback window and two pages that are partly behind it, and evicts when
 * a step has ended.
 */
inline int64_t PagesForWindows(const PagedKVCacheConfig& config, int64_t max_sequences) {
  if (config.page_size < 1) return 0;
  const auto pages_for = [&](int64_t tokens) {
    return (tokens + config.page_size - 1) / config.page_size;
  };
  return max_sequences * (2 + pages_for(kDefaultHorizon)) + pages_for(config.prefill_chunk_size);
}

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_WINDOW_PAGES_H_
