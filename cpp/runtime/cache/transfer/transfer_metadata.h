/*!
 * \file runtime/cache/transfer/transfer_metadata.h
 * \brief Metadata of a sequence that moves to another cache as page groups, one for each layer.
 *
 * TVM's interface calls it a checkpoint. The names and the hash are those of TVM's cache, so that
 * the two exchange sequences.
 */
#ifndef KVCTL_RUNTIME_CACHE_TRANSFER_TRANSFER_METADATA_H_
#define KVCTL_RUNTIME_CACHE_TRANSFER_TRANSFER_METADATA_H_

#include <cstdint>
#include <string>

#include "kvctl/paged_kv_cache.h"

namespace kvctl {

/*!
 * \brief A hash of everything that decides what the bytes of a page mean. Equal caches of TVM and
 * of kvctl have the same hash.
 * \throws Error kNotImplemented for caches that have no hash in TVM either: with layer windows or
 * RoPE extension factors.
 */
std::string LayoutHash(const PagedKVCacheConfig& config);

/*! \brief The metadata of a sequence of `length` tokens, as JSON. */
std::string TransferMetadata(const PagedKVCacheConfig& config, int64_t seq_id, int64_t length);

/*!
 * \brief The number of tokens of the sequence that the metadata describes.
 * \throws Error kValue if the metadata does not fit the cache; the message names the field.
 */
int64_t CheckTransferMetadata(const PagedKVCacheConfig& config, int64_t seq_id,
                              const std::string& metadata);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_TRANSFER_TRANSFER_METADATA_H_
