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
#include "kernels/int8_row.h"

namespace kvctl {
namespace {

/*! \brief Attention works on a batch of keys of one KV head while it prefetches another batch. The
 * most keys in a batch. */
constexpr int32_t kBatchKeys = 32;
/*! \brief The most bytes in a batch when several heads alternate, unless its keys are contiguous:
 * three fit the first-level cache, the current batch and those being fetched. */
constexpr int64_t kBatchBytes = 1 << 13;

/*! \brief Finds the addresses that attention will read soon: the next batch, or the one after it
 * where heads alternate. That is early enough to hide the memory latency, and late enough that the
 * data stays in the cache. T: element type of the pages. */
template <typename T>
class ReadAhead {
 public:
  ReadAhead(const AttentionArgs& args, const AttentionShape& shape, int32_t num_heads,
            int64_t value_offset)
      : num_heads_(num_heads),
        far_(shape.from_memory && num_heads > 1),
        run_(std::min(kBatchKeys, args.page_size & -args.page_size)),
        key_bytes_(RowElements(args.kv_dtype, args.head_dim) * int64_t{sizeof(T)}),
        value_bytes_(value_offset * int64_t{sizeof(T)}) {
    if (num_heads == 1) return;
    while (batch_ > std::max(run_, kLanes) && batch_ * key_bytes_ > kBatchBytes) batch_ /= 2;
    if (run_ > batch_) run_ = batch_;
    head_bytes_ = args.page_size * key_bytes_;
  }

  /*! \brief Keys of a batch: a power of two, at least kLanes. */
  int32_t batch() const { return batch_; }

  /*!
   * \brief The order is the keys of a chunk, batch by batch and head by head within a batch, then
   * its values, then the keys of the next chunk.
   * \param key, head Of the current batch. \param values Whether it is of values, not of keys.
   * \param batches How many batches from there on are one, where there is one head.
   * \param runs [batches * kBatchKeys + 1] for the fetcher.
   */
  Fetcher Find(const ChunkKeys& chunk, int32_t key, int32_t head, bool values,
               const ChunkKeys& next, int32_t batches, uintptr_t* runs) const {
    uintptr_t* to = runs;
    head += num_heads_ > 1 ? 2 : 1;
    for (int32_t batch = batches - 1; batch < 2 * batches - 1; ++batch) {
      int32_t first = key + (head / num_heads_ + batch) * batch_;
      const int32_t end = chunk.num_blocks * kTileKeys;
      const void* const* keys = chunk.keys;
      bool of_values = values;
      if (first >= end) {
        first -= end;
        if (values && next.num_blocks > 0) keys = next.keys;
        of_values = !values;
      }
      const int64_t offset = head % num_heads_ * head_bytes_ + (of_values ? value_bytes_ : 0);
      for (int32_t c = 0; c < batch_; c += run_) {
        *to++ = reinterpret_cast<uintptr_t>(keys[first + c]) + offset;
      }
    }
    *to = to[-1];
    return {runs, run_ * key_bytes_, far_};
  }

  /*!
   * \brief All keys and values of a chunk.
   * \param runs [2 * chunk.num_blocks * 64 + 1] for the fetcher. \param bytes Receives their size.
   */
  Fetcher FindChunk(const ChunkKeys& chunk, uintptr_t* runs, int64_t* bytes) const {
    uintptr_t* to = runs;
    for (int32_t i = 0; i < chunk.num_blocks * kTileKeys; i += run_) {
      if (chunk.keys[i] == nullptr) continue;
      to[0] = reinterpret_cast<uintptr_t>(chunk.keys[i]);
      to[1] = to[0] + value_bytes_;
      to += 2;
    }
    *bytes = (to - runs) * run_ * key_bytes_;
    *to = to == runs ? 0 : to[-1];
    return {runs, run_ * key_bytes_, far_};
  }

 private:
  const int32_t num_heads_;
  const bool far_;
  int32_t batch_ = kBatchKeys;
  int32_t run_;  // this many keys from each multiple of it on are contiguous in a page
  const int64_t key_bytes_;
  const int64_t value_bytes_;  // from a key to its value
  int64_t head_bytes_ = 0;     // from a key to that of the next head
};

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_AHEAD_INL_H_
