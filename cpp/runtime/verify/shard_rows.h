/*!
 * \file runtime/verify/shard_rows.h
 * \brief Samples rows of logits whose columns lie on several workers, without gathering them.
 *
 * Sums of rows are sums of integers by blocks of columns, and a worker has whole blocks: the sums
 * of all workers, one after another, are those of the whole row, and the token is that which
 * RowSampler samples from it, bit by bit. Only sums travel, and then one token for each row.
 */
#ifndef KVCTL_RUNTIME_VERIFY_SHARD_ROWS_H_
#define KVCTL_RUNTIME_VERIFY_SHARD_ROWS_H_

#include <cstdint>
#include <vector>

namespace kvctl {

/*! \brief The rows of one worker. */
struct ShardRows {
  const float* logits = nullptr;  //!< (rows, columns), on the host
  int64_t rows = 0;
  int64_t columns = 0;
  const double* temperatures = nullptr;  //!< (rows), 0 for the largest logit

  /*! \brief Blocks of a worker's columns. */
  int64_t blocks() const;
};

/*! \brief What names the random numbers of rows. */
struct ShardStreams {
  uint64_t seed = 0;
  const int64_t* request_ids = nullptr;  //!< (rows); null where nothing is random
  const int64_t* positions = nullptr;    //!< (rows) the positions of the tokens that are sampled
};

/*!
 * \brief What other workers need of this one's rows.
 * \param out (rows, blocks, 2): for each block the exponent and the sum of its exponentials or, at
 * temperature 0, the bits of its largest logit and where that first is.
 */
void SumShardRows(const ShardRows& shard, int64_t* out);

/*!
 * \brief The tokens of rows, as far as this worker knows them.
 * \param sums (workers, rows, blocks, 2), what SumShardRows wrote on each.
 * \param worker Which of them this is.
 * \param tokens (rows): a token, -1 where another worker has it, or -2 where the sums do not tell
 * (a logit is infinite, all are minus infinity, or blocks are cut) and the row must be gathered.
 */
void SampleShardRows(const ShardRows& shard, const int64_t* sums, int64_t workers, int64_t worker,
                     const ShardStreams& streams, int32_t* tokens);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_VERIFY_SHARD_ROWS_H_
