/*!
 * \file core/suffix/continuation_tree.h
 * \brief The most frequent continuations of several occurrences as one tree.
 */
#ifndef KVCTL_CORE_SUFFIX_CONTINUATION_TREE_H_
#define KVCTL_CORE_SUFFIX_CONTINUATION_TREE_H_

#include <cstdint>
#include <vector>

#include "core/suffix/suffix_store.h"

namespace kvctl {

/*! \brief What followed one occurrence. */
struct Continuation {
  const int32_t* tokens;  //!< up to a TextRing::kEnd
  uint64_t age;           //!< larger for newer texts
};

/*!
 * \brief Adds to a draft of node 0 alone the nodes with the largest shares, one after another.
 *
 * A node's share is its parent's times the part of the continuations that went on from there with
 * its token. Among equals the one that the newest text has comes first.
 */
void GrowContinuations(std::vector<Continuation> continuations, int64_t max_nodes,
                       int64_t max_depth, SuffixDraft* draft);

}  // namespace kvctl

#endif  // KVCTL_CORE_SUFFIX_CONTINUATION_TREE_H_
