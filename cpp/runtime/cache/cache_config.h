/*!
 * \file runtime/cache/cache_config.h
 * \brief A cache's configuration and its windows, checked, as core takes them.
 */
#ifndef KVCTL_RUNTIME_CACHE_CACHE_CONFIG_H_
#define KVCTL_RUNTIME_CACHE_CACHE_CONFIG_H_

#include <cstdint>

#include "core/cache/sequence_table.h"
#include "kvctl/paged_kv_cache.h"

namespace kvctl {

/*!
 * \brief Checks a configuration before anything is allocated for it.
 * \return `config`
 * \throws Error kValue, kType or kNotImplemented.
 */
const PagedKVCacheConfig& CheckedConfig(const PagedKVCacheConfig& config);

TableConfig ToTableConfig(const PagedKVCacheConfig& config);

/*!
 * \brief A window as kvctl's interface describes it.
 * \throws Error kValue if its sinks cannot be renumbered. The table checks the sizes.
 */
SlidingWindow MakeWindow(const PagedKVCacheConfig& config, int64_t size, int64_t sinks,
                         int64_t horizon, bool renumber_sinks);

/*! \brief A window as TVM's interface describes it. \throws Error kValue for sizes out of range. */
SlidingWindow MakeTvmWindow(const PagedKVCacheConfig& config, int32_t size, int32_t sinks);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_CACHE_CONFIG_H_
