/*!
 * \file core/cache/sequence.h
 * \brief Host metadata of one sequence: its pages, its committed tokens, its pending region.
 */
#ifndef KVCTL_CORE_CACHE_SEQUENCE_H_
#define KVCTL_CORE_CACHE_SEQUENCE_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvctl {

class Checkpoint;

/*! \brief The pending region of a sequence: drafted tokens, not accepted yet, after its committed
 * tokens. Its nodes form a forest that may grow over several steps. */
struct PendingRegion {
  std::vector<int32_t> parents;    //!< index into the region, or -1 for the committed context
  std::vector<int32_t> depths;     //!< distance from the committed context; a root has depth 0
  std::vector<int32_t> positions;  //!< rotary position of each node
  /*! \brief Whether a node came under a mask that is neither causal nor a tree. Such a mask chose
   * the node's columns, so that the nodes kept before it need not be its path. */
  std::vector<uint8_t> masked;  //!< up to the last such node: empty in a tree
  bool chain = true;            //!< each node is the child of the node before it
  int32_t num_written = 0;      //!< nodes before the first whose K or V is missing in some layer
  int32_t layers_written = 0;   //!< first layers that have K and V of the nodes from num_written on

  int32_t size() const { return static_cast<int32_t>(parents.size()); }
  bool empty() const { return parents.empty(); }
  bool is_masked(int32_t node) const {
    return node < static_cast<int32_t>(masked.size()) && masked[node] != 0;
  }
  /*! \brief Appends nodes whose positions the caller then sets; without parents, a chain. */
  void Append(const int32_t* new_parents, int32_t count, bool masks_columns);
  /*! \brief Keeps the first `size` nodes: a parent precedes its children, so they are a forest. */
  void Truncate(int32_t size);
};

/*!
 * \brief A sliding window: a token sees the last `size` positions, its own included, and the first
 * `sinks`.
 *
 * Pages behind the window are evicted once they are `rollback_window` positions behind it: the
 * sequence can be popped or rolled back that far.
 */
struct SlidingWindow {
  int32_t size = 0;  //!< 0: none
  int32_t sinks = 0;
  int32_t rollback_window = 0;
  /*! \brief Queries further than size + sinks - 1 from the start see the sinks at that distance:
   * the sinks move along with the window (StreamingLLM, arXiv:2309.17453, sec. 3.2). */
  bool renumber_sinks = false;
  /*! \brief The reported length is at most the size + sinks - 1 tokens that the next token will
   * see, as TVM counts. */
  bool reports_held_length = false;

  /*! \brief How many tokens a query sees besides itself. */
  int64_t past() const { return int64_t{size} + sinks - 1; }
};

/*! \brief The tokens that a window has evicted: KV indices [begin, end). Pages that lie entirely
 * inside are released; those before `begin` hold the sinks. */
struct EvictedRange {
  int32_t begin = 0;
  int32_t end = 0;

  bool empty() const { return begin >= end; }
  /*! \brief The range after the sequence is cut to its first `kv_len` tokens. */
  EvictedRange Cut(int32_t kv_len) const {
    return kv_len <= begin ? EvictedRange{} : EvictedRange{begin, std::min(end, kv_len)};
  }
  /*! \brief Extends the range over `other`. */
  void Join(const EvictedRange& other) {
    if (other.empty()) return;
    begin = empty() ? other.begin : std::min(begin, other.begin);
    end = std::max(end, other.end);
  }
};

/*! \brief Positions of committed tokens where they differ from 0, 1, 2, ... (after eviction, or
 * given). */
using PositionList = std::shared_ptr<std::vector<int32_t>>;

/*!
 * \brief One sequence of the cache.
 *
 * A *KV index* counts its tokens in the cache: the committed ones, [0, num_committed), then the
 * pending nodes in the order of their appends. KV index i lies in pages[i / page_size].
 */
struct Sequence {
  int64_t id = 0;
  std::vector<int32_t> pages;
  int32_t num_committed = 0;
  int32_t next_position = 0;  //!< position of the next committed token
  PositionList positions;     //!< null: position = KV index
  PendingRegion pending;
  SlidingWindow window;
  EvictedRange evicted;                  //!< evicted by the window; pages entirely inside are -1
  std::vector<Checkpoint*> checkpoints;  //!< the live ones, oldest first
  uint64_t batch_mark = 0;               //!< the last batch that named this sequence

  int32_t kv_len() const { return num_committed + pending.size(); }
  /*! \brief The length that callers are told; see SlidingWindow::reports_held_length. */
  int32_t reported_length() const {
    const int64_t committed = num_committed;
    return static_cast<int32_t>(window.reports_held_length ? std::min(committed, window.past())
                                                           : committed) +
           pending.size();
  }
  /*! \brief The KV index of the i-th token of the reported length; the sinks are always held. */
  int32_t KvIndexOf(int32_t i) const {
    return i < window.sinks ? i : i + kv_len() - reported_length();
  }
  int32_t PositionOf(int32_t kv_index) const {
    return positions ? (*positions)[kv_index] : kv_index;
  }
  /*! \brief How many committed tokens have the positions of the window's sinks. Where tokens share
   * positions or skip some, it differs from the number of sinks. */
  int32_t num_sinks() const;
  /*! \brief Appends `count` committed tokens that continue at next_position. */
  void ExtendCommitted(int32_t count);
  /*! \brief Appends one committed token at an explicit position; `positions` must exist. */
  void PushCommitted(int32_t position);
  /*! \brief The list that `positions`, which is null, must become before tokens are committed at
   * positions `next`: null if those continue the count, else 0, 1, 2, ... with capacity for them.
   */
  PositionList PositionsFor(const int32_t* next, int32_t count) const;
  /*! \brief Keeps the first `length` committed tokens. */
  void TruncateCommitted(int32_t length);
};

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_SEQUENCE_H_
