/*!
 * \file runtime/generate/drafting.h
 * \brief The drafter's side of a batch: what it starts, proposes, learns and forgets.
 */
#ifndef KVCTL_RUNTIME_GENERATE_DRAFTING_H_
#define KVCTL_RUNTIME_GENERATE_DRAFTING_H_

#include <cstdint>
#include <vector>

#include "runtime/generate/decider.h"

namespace kvctl {

/*! \brief Asks a drafter for drafts, and keeps the contract between it and the loop. */
class Drafting {
 public:
  /*! \param drafter May be null: then every draft is the root alone. */
  Drafting(const ModelRunner* runner, Drafter* drafter, bool slides)
      : runner_(runner), drafter_(drafter), slides_(slides) {}

  /*! \brief Tells the drafter of a text that runs. */
  void Start(TextState* text);
  /*! \brief Lets the drafter forget a text, if it knows it. */
  void Finish(TextState* text);
  /*! \brief The drafts of a round. \throws Error kValue if the drafter breaks its contract. */
  std::vector<Share> Propose(const std::vector<TextState*>& texts);
  /*! \brief A round in which nobody is asked. */
  static std::vector<Share> ProposeNothing(const std::vector<TextState*>& texts);
  /*! \brief Teaches the drafter what became of its drafts. */
  void Observe(const std::vector<RoundResult>& results);

 private:
  void SetLimits(const std::vector<TextState*>& texts) const;

  const ModelRunner* runner_;
  Drafter* drafter_;
  bool slides_;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_GENERATE_DRAFTING_H_
