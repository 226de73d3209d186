/*!
 * \file core/tree/best_first.h
 * \brief The most probable tree of a budget over distributions of one token per depth.
 */
#ifndef KVCTL_CORE_TREE_BEST_FIRST_H_
#define KVCTL_CORE_TREE_BEST_FIRST_H_

#include <cstdint>
#include <vector>

#include "kvctl/token_tree.h"

namespace kvctl {

/*! \brief What a drafter says of the next tokens: at each depth a distribution of its own. */
template <typename Real>
struct Marginals {
  const Real* probs;      //!< [depth, width] probability of each candidate
  const int32_t* tokens;  //!< [depth, width] the candidates; nullptr: column j is token j
  int32_t depth;
  int32_t width;
};

/*! \brief A tree, and the probability of the path to each of its nodes; the root's is 1. */
struct RatedTree {
  TokenTree tree;
  std::vector<double> rates;  //!< [tree.size()]
};

/*!
 * \brief The nodes with the most probable paths, where a path's probability is the product of its
 * tokens' marginals (the lattice of DDTree, arXiv 2604.12989).
 *
 * A path is never more probable than its parent's, so taking the best candidate next to the tree,
 * again and again, takes the best `budget` paths of all: no other tree of as many nodes has a
 * larger sum of rates. Nodes are in the order in which they were taken; among equals the shallower
 * one, the older parent and the lower column come first. Paths of probability 0 are left out.
 *
 * \param root The token of node 0.
 * \param budget Nodes beside the root, at least 0.
 * \param costs [budget + 1] what a round of 1, 2, ... rows costs, or nullptr. With costs the tree
 * has as many nodes as maximise (sum of rates) / cost; of equals the smaller tree.
 * \throws Error kValue if a probability is NaN, negative or more than 1, if those of one depth sum
 * to more than 1, if a depth has a candidate twice or below 0, or if the budget is negative.
 */
template <typename Real>
RatedTree BestFirst(int32_t root, const Marginals<Real>& marginals, int64_t budget,
                    const double* costs = nullptr);

/*!
 * \brief How many of the nodes, taken in order, maximise (1 + sum of their rates) / cost.
 * \param rates [count] path probabilities, none larger than the one before it.
 * \param costs [count + 1] what a round of 1, 2, ... rows costs.
 */
int64_t BestCount(const double* rates, int64_t count, const double* costs);

}  // namespace kvctl

#endif  // KVCTL_CORE_TREE_BEST_FIRST_H_
