/*!
 * \file kvctl/token_tree.h
 * \brief The drafted tokens of one sequence as a tree: what a verify step checks.
 */
#ifndef KVCTL_TOKEN_TREE_H_
#define KVCTL_TOKEN_TREE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvctl/api.h"

namespace kvctl {

struct PrunedTree;

/*!
 * \brief A rooted tree of drafted tokens; a chain is a tree. Immutable.
 *
 * Node 0 is the root: the last emitted token, which the target has not forwarded yet. A parent
 * precedes its children, and siblings stand in the order in which they were drawn; equal siblings
 * are legal.
 *
 * rows()[i] is the row of the sequence's pending region that holds node i's KV and logits. Nodes
 * may share a row where they stand for the same token behind the same path (duplicate siblings need
 * one forward, not two), and rows may belong to no node.
 */
class KVCTL_API TokenTree {
 public:
  /*!
   * \param tokens [n] token of each node, at least 0.
   * \param parents [n] parent of each node; -1 for node 0 and for no other.
   * \param rows [n] pending row of each node; empty: node i is row i.
   * \throws Error kValue if the arrays do not describe such a tree.
   */
  TokenTree(std::vector<int32_t> tokens, std::vector<int32_t> parents,
            std::vector<int32_t> rows = {});
  /*! \brief The tree without branches: node i + 1 follows node i. */
  static TokenTree Chain(std::vector<int32_t> tokens);

  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  /*! \brief Rows that a forward of this tree has: one more than the largest row of a node. */
  int32_t num_rows() const { return num_rows_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const std::vector<int32_t>& parents() const { return parents_; }
  const std::vector<int32_t>& rows() const { return rows_; }
  const std::vector<int32_t>& depths() const { return depths_; }
  /*! \brief Whether no node has more than one child. */
  bool is_chain() const;

  /*!
   * \brief [num_rows] parent row of each row, -1 for the root's: what the attention mask is made
   * of.
   * \throws Error kValue if a row belongs to no node, because then only the caller knows what it
   * may see.
   */
  std::vector<int32_t> RowParents() const;

  /*!
   * \brief The subtree of n nodes that takes, one after another, the best-scored node whose parent
   * it has; the root is always in it and the lower index wins ties.
   *
   * With path scores, which never grow towards the leaves, these are the n best nodes. Rows are
   * numbered anew without gaps. Siblings that were drawn at random and then pruned by value no
   * longer follow the distribution they were drawn from: verify them as deterministic.
   *
   * \param scores [size()] one score per node; the root's is not read.
   * \param n between 1 and size().
   */
  PrunedTree Prune(const std::vector<double>& scores, int32_t n) const;

  /*! \brief The tree as one flat buffer: how it crosses the FFI. */
  std::vector<int32_t> Encode() const;
  /*! \brief The inverse of Encode. \throws Error kValue if the buffer does not hold one tree. */
  static TokenTree Decode(const int32_t* data, size_t size);

  /*! \brief A drawing in ASCII, one line per node: "index:token". */
  std::string ToString() const;

 private:
  std::vector<int32_t> tokens_;
  std::vector<int32_t> parents_;
  std::vector<int32_t> rows_;
  std::vector<int32_t> depths_;
  int32_t num_rows_ = 0;
};

/*! \brief A smaller tree, and where its nodes came from. */
struct PrunedTree {
  TokenTree tree;
  std::vector<int32_t> nodes;  //!< [tree.size()] index of each node in the larger tree, ascending
};

}  // namespace kvctl

#endif  // KVCTL_TOKEN_TREE_H_
