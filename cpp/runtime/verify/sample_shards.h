/*!
 * \file runtime/verify/sample_shards.h
 * \brief Samples rows of logits whose columns lie on several workers, on all workers together.
 */
#ifndef KVCTL_RUNTIME_VERIFY_SAMPLE_SHARDS_H_
#define KVCTL_RUNTIME_VERIFY_SAMPLE_SHARDS_H_

#include <tvm/runtime/tensor.h>

#include <cstdint>

#include "runtime/verify/shard_rows.h"

namespace kvctl {

/*!
 * \brief Every worker calls it for the same rows, and gets the same tokens.
 *
 * Two collectives of Disco's: an allgather of the sums and, where rows are sampled at a temperature
 * above 0, an allreduce of the tokens.
 *
 * \return (rows) int32: tokens, or -2 where a row must be gathered (see SampleShardRows).
 * \throws Error kRuntime if Disco is not loaded.
 */
tvm::runtime::Tensor SampleShards(const ShardRows& shard, int64_t workers, int64_t worker,
                                  const ShardStreams& streams);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_VERIFY_SAMPLE_SHARDS_H_
