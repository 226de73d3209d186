/*!
 * \file kernels/cpu/attention/attention_ahead-inl.h
 * \brief Prefetching of the keys and values that attention reads next.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_AHEAD_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_AHEAD_INL_H_

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/attention/attention_micro-inl.h"
#include "kernels/cpu/attention/attention_scratch-inl.h"

namespace kvctl {
namespace {

/*! \brief A batch is what attention works on, of one KV head, while it fetches another: at most so
 * many keys. */
constexpr int32_t kBatchKeys = 32;
/*! \brief Batches of several heads are not larger than this, unless they lie in one piece: there is
 * room for three in the first-level cache, the one at work and those that are fetched. */
constexpr int64_t kBatchBytes = 1 << 13;

/*! \brief Finds what attention will come to soon, as it lies in memory: the next batch, or where
 * heads take turns the one after it. That is long enough before for the memory's delay, and not so
 * long that it is driven out of the cache again. T: element type of the pages. */
template <typename T>
class ReadAhead {
 public:
  ReadAhead(const AttentionArgs& args, int32_t num_heads, int64_t value_offset)
      : num_heads_(num_heads),
        run_(std::min(kBatchKeys, args.page_size & -args.page_size)),
        key_bytes_(args.head_dim * int64_t{sizeof(T)}),
        value_bytes_(value_offset * int64_t{sizeof(T)}) {
    if (num_heads == 1) return;
    while (batch_ > std::max(run_, 4) && batch_ * key_bytes_ > kBatchBytes) batch_ /= 2;
    if (run_ > batch_) run_ = batch_;
    head_bytes_ = args.page_size * key_bytes_;
  }

  /*! \brief Keys of a batch: a power of two, at least 4. */
  int32_t batch() const { return batch_; }

  /*!
   * \brief First come the keys of a chunk, batch by batch and in each batch head by head, then its
   * values, then the keys of the next chunk.
   * \param key, head Of the batch at work, `values` or keys.
   * \param runs [kBatchKeys + 1] for the fetcher.
   */
  Fetcher Find(const ChunkKeys& chunk, int32_t key, int32_t head, bool values,
               const ChunkKeys& next, uintptr_t* runs) const {
    head += num_heads_ > 1 ? 2 : 1;
    int32_t first = key + head / num_heads_ * batch_;
    const void* const* keys = chunk.keys;
    if (first >= chunk.num_blocks * kTileKeys) {
      first = 0;
      if (values && next.num_blocks > 0) keys = next.keys;
      values = !values;
    }
    const int64_t offset = head % num_heads_ * head_bytes_ + (values ? value_bytes_ : 0);
    uintptr_t* to = runs;
    for (int32_t c = 0; c < batch_; c += run_) {
      *to++ = reinterpret_cast<uintptr_t>(keys[first + c]) + offset;
    }
    *to = to[-1];
    return {runs, run_ * key_bytes_};
  }

 private:
  const int32_t num_heads_;
  int32_t batch_ = kBatchKeys;
  int32_t run_;  // so many keys from each multiple of it on are neighbours in a page
  const int64_t key_bytes_;
  const int64_t value_bytes_;  // from a key to its value
  int64_t head_bytes_ = 0;     // from a key to that of the next head
};

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_AHEAD_INL_H_
