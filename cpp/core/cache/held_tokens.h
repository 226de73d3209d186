/*!
 * \file core/cache/held_tokens.h
 * \brief Whether a sequence still holds the tokens that its sliding window shows.
 */
#ifndef KVCTL_CORE_CACHE_HELD_TOKENS_H_
#define KVCTL_CORE_CACHE_HELD_TOKENS_H_

#include <cstdint>

#include "core/cache/sequence.h"

namespace kvctl {

/*! \brief A state of a sequence to be checked against its window. */
struct HeldTokens {
  EvictedRange evicted;
  int32_t kv_len;
  int32_t next_position;
  const PositionList& positions;
};

/*! \throws Error kValue if the window shows an evicted token. */
void CheckHeld(int64_t id, const SlidingWindow& window, const HeldTokens& held,
               const char* operation);
/*! \brief CheckHeld for a sequence cut to its first `kv_len` tokens. */
void CheckCut(const Sequence& sequence, int32_t kv_len, const char* operation);

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_HELD_TOKENS_H_
