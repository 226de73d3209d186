/*!
 * \file runtime/cache/kv_checkpoint.h
 * \brief What TVM's interface calls a checkpoint: one sequence as metadata and, per layer, a group
 * of pages. The names and the hash are those of TVM's cache, so that the two exchange sequences.
 */
#ifndef KVCTL_RUNTIME_CACHE_KV_CHECKPOINT_H_
#define KVCTL_RUNTIME_CACHE_KV_CHECKPOINT_H_

#include <cstdint>
#include <string>

#include "kvctl/paged_kv_cache.h"

namespace kvctl {

/*!
 * \brief A hash of all that decides what the bytes of a page mean; equal caches of TVM's and
 * kvctl's have the same.
 * \throws Error kNotImplemented for caches that TVM gives none either: layers with windows, RoPE
 * extension factors.
 */
std::string LayoutHash(const PagedKVCacheConfig& config);

/*! \brief The metadata of a sequence of so many tokens, as JSON. */
std::string CheckpointMetadata(const PagedKVCacheConfig& config, int64_t seq_id, int64_t length);

/*!
 * \brief The number of tokens of the sequence that the metadata describes.
 * \throws Error kValue where the metadata does not fit the cache: the message names the field.
 */
int64_t CheckCheckpointMetadata(const PagedKVCacheConfig& config, int64_t seq_id,
                                const std::string& metadata);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_KV_CHECKPOINT_H_
