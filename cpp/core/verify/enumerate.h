/*!
 * \file core/verify/enumerate.h
 * \brief Every outcome of a rule on one drafted tree, with its exact probability.
 */
#ifndef KVCTL_CORE_VERIFY_ENUMERATE_H_
#define KVCTL_CORE_VERIFY_ENUMERATE_H_

#include <vector>

#include "core/verify/rules.h"

namespace kvctl {

/*! \brief An Rng that takes every branch of a rule, one per run, until Next() returns false. */
class ReplayRng {
 public:
  bool Accept(double probability, int32_t node);
  bool MayAccept(double, int32_t) const { return true; }
  int32_t Bonus(RowSampler& target, int32_t node);
  int32_t SampleResidual(Residual& residual, int32_t node);
  int32_t Token(TreeVerifier& verifier, int32_t node);

  /*! \brief The probability of the branches taken since the last Next(). */
  double probability() const;
  /*! \brief Prepares the next run. \return false if every branch was taken. */
  bool Next();

 private:
  friend std::vector<double> LastAccepted(Rule, const VocabContext&, const SequenceInput&, bool);

  struct Choice {
    std::vector<std::pair<int32_t, double>> options;  // all with a probability above 0
    size_t current = 0;
  };
  int32_t Choose(std::vector<std::pair<int32_t, double>> options);
  int32_t Choose(const Distribution& distribution);

  std::vector<Choice> choices_;
  size_t at_ = 0;
  bool nodes_only_ = false;  // merge all tokens that no child holds, and draw no bonus
};

struct WeightedOutcome {
  double probability;
  Outcome outcome;
};

/*!
 * \brief All outcomes of a rule, in the order found; equal outcomes may appear several times.
 * \throws Error kValue as CheckRule does, if check is set, and for nodes drawn coupled.
 */
std::vector<WeightedOutcome> Enumerate(Rule rule, const VocabContext& vocab,
                                       const SequenceInput& input, bool check = true);

/*!
 * \brief The exact probability that each node of a drafted tree is the last accepted one.
 *
 * It ignores the bonus, so a large vocabulary adds no branches.
 *
 * \return [input.size]; the root's entry is the probability that no drafted token is accepted.
 * \throws Error kValue as CheckRule does, if check is set, and for nodes drawn coupled.
 */
std::vector<double> LastAccepted(Rule rule, const VocabContext& vocab, const SequenceInput& input,
                                 bool check = true);

}  // namespace kvctl

#endif  // KVCTL_CORE_VERIFY_ENUMERATE_H_
