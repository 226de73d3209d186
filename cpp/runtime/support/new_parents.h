/*!
 * \file runtime/support/new_parents.h
 * \brief The tree mask of a step request as the parents of its new tokens.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_NEW_PARENTS_H_
#define KVCTL_RUNTIME_SUPPORT_NEW_PARENTS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kvctl/error.h"
#include "kvctl/step_request.h"

namespace kvctl {

/*!
 * \brief The parents of a request's new tokens in its tree.
 *
 * The tree lists either the new nodes alone or the whole pending region. In the second case its
 * earlier nodes must have the parents that they have in the sequence.
 *
 * \param num_pending Size of the sequence's pending region.
 * \param parent_of Called with the index of a pending node, returns its parent.
 * \return [append_length] within `tree`.
 * \throws Error kValue for a tree of another size, or with other parents of pending nodes.
 */
template <typename ParentOf>
const int32_t* NewParents(const std::vector<int32_t>& tree, const StepRequest& request,
                          int32_t num_pending, ParentOf parent_of) {
  const auto size = static_cast<int64_t>(tree.size());
  const int64_t length = request.append_length;
  if (size == length) return tree.data();
  if (size - num_pending != std::max<int64_t>(length, 0)) {
    Throw(ErrorKind::kValue, "the tree of sequence ", request.seq_id, " has ", size,
          " nodes; it must have one for each of the ", length, " new tokens, or of the ",
          num_pending, " pending and the ", length, " new");
  }
  for (int32_t node = 0; node < num_pending; ++node) {
    if (tree[node] == parent_of(node)) continue;
    Throw(ErrorKind::kValue, "in the tree of sequence ", request.seq_id, " the parent of node ",
          node, " is ", tree[node], ", but it is pending with parent ", parent_of(node));
  }
  return tree.data() + num_pending;
}

/*!
 * \brief Sets `parents` and `pending` of a request whose mask holds a tree; leaves others alone.
 * \throws Error kValue as NewParents does, or if the request has parents besides.
 */
template <typename ParentOf>
void ResolveTree(StepRequest* request, int32_t num_pending, ParentOf parent_of) {
  const std::vector<int32_t>* tree = request->mask ? request->mask->tree_parents() : nullptr;
  if (tree == nullptr) return;
  if (request->parents != nullptr) {
    Throw(ErrorKind::kValue, "sequence ", request->seq_id,
          " has a tree mask and parents; give one of the two");
  }
  request->pending = request->AppendsPending();
  request->parents = NewParents(*tree, *request, num_pending, parent_of);
}

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_NEW_PARENTS_H_
