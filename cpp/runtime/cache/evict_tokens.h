/*!
 * \file runtime/cache/evict_tokens.h
 * \brief Evicts tokens, and rotates the keys of those that stay.
 */
#ifndef KVCTL_RUNTIME_CACHE_EVICT_TOKENS_H_
#define KVCTL_RUNTIME_CACHE_EVICT_TOKENS_H_

#include <cstdint>
#include <vector>

#include "core/cache/sequence_table.h"
#include "runtime/cache/backend/cache_backend.h"
#include "runtime/cache/step/key_rotator.h"

namespace kvctl {

/*! \brief The parts of a cache that an eviction changes. */
struct EvictionParts {
  SequenceTable& table;
  CacheBackend& backend;
  KeyRotator& rotator;
  CopyPlan& copies;  //!< scratch
};

/*!
 * \brief See PagedKVCacheObj::Evict.
 * \param keep As the sequence's length counts tokens.
 */
void EvictTokens(const EvictionParts& parts, int64_t seq_id, const std::vector<int32_t>& keep,
                 bool rerotate);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_EVICT_TOKENS_H_
