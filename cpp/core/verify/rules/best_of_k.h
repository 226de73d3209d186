/*!
 * \file core/verify/rules/best_of_k.h
 * \brief K independent paths: selects one whose joint distribution is known, then verifies it as a
 * block.
 *
 * After multi-path block verification, arXiv 2602.16961. At each prefix tokens are ordered by p /
 * q, and the lexicographically largest path is selected. A maximum of K draws has a distribution in
 * closed form: with lo the probability that a path ranks below the prefix and w that it has it, the
 * selected next token is x with probability proportional to (c + w q[x])^K - c^K, where c = lo + w
 * * (q of the tokens ordered before x).
 */
#ifndef KVCTL_CORE_VERIFY_RULES_BEST_OF_K_H_
#define KVCTL_CORE_VERIFY_RULES_BEST_OF_K_H_

#include <algorithm>
#include <utility>
#include <vector>

#include "core/support/exact_math.h"
#include "core/verify/rules/block.h"
#include "kvctl/error.h"

namespace kvctl::rules {

/*! \brief The paths that share the selected prefix, and the mass below and at that prefix. */
class PathSelection {
 public:
  PathSelection(TreeVerifier& verifier, std::vector<int32_t>* path)
      : verifier_(verifier), path_(path) {
    for (int32_t c = verifier.first_child(0); c >= 0; c = verifier.next_sibling(c))
      nodes_.push_back(c);
    num_paths_ = static_cast<int32_t>(nodes_.size());
  }

  /*! \brief Selects the next node and returns its distribution. */
  DraftDistribution Next() {
    const int32_t size = verifier_.vocab().size();
    Distribution p, distribution;
    verifier_.Target(path_->empty() ? 0 : path_->back()).FillDistribution(&p);
    const DraftDistribution d = verifier_.Draft(nodes_[0]);
    std::vector<double> weights(size);
    d.row.Weights(verifier_.vocab().ops(), 0, size, weights.data());
    for (int32_t node : nodes_) {
      if (weights[verifier_.token(node)] > 0) continue;
      Throw(ErrorKind::kValue, "node ", node, " holds token ", verifier_.token(node),
            ", which has probability 0 under the draft_probs of its prefix");
    }
    std::vector<std::pair<double, int32_t>> order;
    for (int32_t x = 0; x < size; ++x) {
      if (weights[x] > 0) order.emplace_back(p.weights[x] / weights[x], x);
    }
    std::sort(order.begin(), order.end());

    const double norm = PowerSum(lo_, lo_ + w_);
    verifier_.vocab().OneHot(0, &distribution);
    distribution.Remove(0);
    double before = 0, selected_c = 0;
    int32_t selected = -1;
    for (const auto& [ratio, x] : order) {
      const double q = weights[x] / d.total;
      const double c = lo_ + w_ * (before / d.total);
      before += weights[x];
      distribution.weights[x] = ToGrid(std::min(1.0, q * (PowerSum(c, c + w_ * q) / norm)));
      distribution.block_sums[x / kVocabBlock] += distribution.weights[x];
      distribution.total += distribution.weights[x];
      const auto holds = [&, token = x](int32_t node) { return verifier_.token(node) == token; };
      if (std::any_of(nodes_.begin(), nodes_.end(), holds)) {
        selected = x;  // the last in the order wins
        selected_c = c;
      }
    }
    const double q = weights[selected] / d.total;
    // Only the ratio of lo and w matters below; their sum is kept at 1.
    const double sum = selected_c + w_ * q;
    lo_ = selected_c / sum;
    w_ = w_ * q / sum;
    nodes_.erase(std::remove_if(nodes_.begin(), nodes_.end(),
                                [&](int32_t node) { return verifier_.token(node) != selected; }),
                 nodes_.end());
    path_->push_back(nodes_[0]);
    for (int32_t& node : nodes_) node = verifier_.first_child(node);
    const double weight = distribution.weights[selected], total = distribution.total;
    selected_.push_back({false, selected, weight, total, {}, DraftRow(std::move(distribution))});
    return selected_.back();
  }

  /*! \brief The distribution of a node selected before. */
  const DraftDistribution& Selected(int32_t i) const { return selected_[i]; }

 private:
  // (b^K - a^K) / (b - a), without the cancellation.
  double PowerSum(double a, double b) const {
    double sum = 0, b_power = 1;
    for (int32_t j = 0; j < num_paths_; ++j) {
      sum = sum * a + b_power;
      b_power *= b;
    }
    return sum;
  }

  TreeVerifier& verifier_;
  std::vector<int32_t>* path_;
  std::vector<int32_t> nodes_;  // the next node of each path that has the selected prefix
  std::vector<DraftDistribution> selected_;
  int32_t num_paths_;
  double lo_ = 0, w_ = 1;
};

template <typename Rng>
Outcome BestOfK(TreeVerifier& verifier, Rng& rng) {
  std::vector<int32_t> path;
  PathSelection selection(verifier, &path);
  return BlockAlong(verifier, rng, path, [&](int32_t i) {
    return i == static_cast<int32_t>(path.size()) ? selection.Next() : selection.Selected(i);
  });
}

}  // namespace kvctl::rules

#endif  // KVCTL_CORE_VERIFY_RULES_BEST_OF_K_H_
