/*!
 * \file core/cache/sequence.h
 * \brief What the host knows of one sequence: its pages, its committed columns, its pending region.
 */
#ifndef KVCTL_CORE_CACHE_SEQUENCE_H_
#define KVCTL_CORE_CACHE_SEQUENCE_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvctl {

class Checkpoint;

/*!
 * \brief The pending region of a sequence: drafted tokens that nobody has accepted yet, after its
 * committed columns. Its nodes form a forest that may grow over several steps.
 */
struct PendingRegion {
  std::vector<int32_t> parents;    //!< index into the region, or -1 for the committed context
  std::vector<int32_t> depths;     //!< distance from the committed context; a root has depth 0
  std::vector<int32_t> positions;  //!< rotary position of each node
  bool chain = true;               //!< every node is the child of the one before it
  int32_t num_written = 0;         //!< nodes before the first whose K or V some layer lacks

  int32_t size() const { return static_cast<int32_t>(parents.size()); }
  bool empty() const { return parents.empty(); }
  void Push(int32_t parent, int32_t position);
  /*! \brief Keeps the first `size` nodes: a parent precedes its children, so what is left is a
   * forest. */
  void Truncate(int32_t size);
};

/*!
 * \brief A sliding window: a token sees the last `size` positions, its own included, and the first
 * `sinks`.
 *
 * Pages that lie behind the window are let go once they are `horizon` positions behind it: as far
 * back the sequence can be popped or rolled back.
 */
struct SlidingWindow {
  int32_t size = 0;  //!< 0: none
  int32_t sinks = 0;
  int32_t horizon = 0;
  /*! \brief Rows further than size + sinks - 1 from the start see the sinks as if they were that
   * far: the sinks move along with the window (StreamingLLM, arXiv:2309.17453, sec. 3.2). */
  bool renumber_sinks = false;
  /*! \brief For others the sequence has the size + sinks - 1 tokens that its next token will see:
   * so TVM counts. */
  bool reports_held_length = false;

  /*! \brief How many tokens a row sees besides itself. */
  int64_t past() const { return int64_t{size} + sinks - 1; }
};

/*!
 * \brief The columns that a window has let go of: [begin, end). Pages that lie wholly in there are
 * not held; those before begin hold the sinks.
 */
struct EvictedRange {
  int32_t begin = 0;
  int32_t end = 0;

  bool empty() const { return begin >= end; }
  /*! \brief What is left of it when the sequence keeps its first `columns` columns. */
  EvictedRange Cut(int32_t kv_len) const {
    return kv_len <= begin ? EvictedRange{} : EvictedRange{begin, std::min(end, kv_len)};
  }
  /*! \brief Makes it reach over `other` too. */
  void Join(const EvictedRange& other) {
    if (other.empty()) return;
    begin = empty() ? other.begin : std::min(begin, other.begin);
    end = std::max(end, other.end);
  }
};

/*! \brief Positions of committed columns where they differ from 0, 1, 2, ... (after eviction, or
 * given). */
using PositionList = std::shared_ptr<std::vector<int32_t>>;

/*!
 * \brief One sequence of the cache.
 *
 * Its columns are the committed ones, [0, num_committed), and then the pending nodes in the order
 * they were appended. Column c lives in pages[c / page_size].
 */
struct Sequence {
  int64_t id = 0;
  std::vector<int32_t> pages;
  int32_t num_committed = 0;
  int32_t next_position = 0;  //!< position of the next committed column
  PositionList positions;     //!< null: position = column
  PendingRegion pending;
  SlidingWindow window;
  EvictedRange evicted;  //!< what the window let go; the pages that lie wholly in there are -1
  std::vector<Checkpoint*> checkpoints;  //!< the live ones, oldest first
  uint64_t batch_mark = 0;               //!< the last batch that named this sequence

  int32_t kv_len() const { return num_committed + pending.size(); }
  /*! \brief Its length for others; see SlidingWindow::reports_held_length. */
  int32_t reported_length() const {
    const int64_t committed = num_committed;
    return static_cast<int32_t>(window.reports_held_length ? std::min(committed, window.past())
                                                           : committed) +
           pending.size();
  }
  /*! \brief The column of the i-th token that counts: the sinks are held whatever the window is. */
  int32_t KvIndexOf(int32_t i) const {
    return i < window.sinks ? i : i + kv_len() - reported_length();
  }
  int32_t PositionOf(int32_t kv_index) const {
    return positions ? (*positions)[kv_index] : kv_index;
  }
  /*! \brief How many committed columns stand where the window's sinks do: not its number of sinks
   * where tokens share positions, or leave some out. */
  int32_t num_sinks() const;
  /*! \brief Appends `count` committed columns that continue at next_position. */
  void ExtendCommitted(int32_t count);
  /*! \brief Appends one committed column at a position of its own; `positions` are there for it. */
  void PushCommitted(int32_t position);
  /*!
   * \brief What `positions`, which are null, must be before columns are committed at `next`: null
   * if those go on counting, else 0, 1, 2, ..., with room for them.
   */
  PositionList PositionsFor(const int32_t* next, int32_t count) const;
  /*! \brief Keeps the first `length` committed columns. */
  void TruncateCommitted(int32_t length);
};

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_SEQUENCE_H_
