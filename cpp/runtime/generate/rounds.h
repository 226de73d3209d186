/*!
 * \file runtime/generate/rounds.h
 * \brief The rounds of a batch: draft, one forward for all texts, decide, keep what was accepted.
 */
#ifndef KVCTL_RUNTIME_GENERATE_ROUNDS_H_
#define KVCTL_RUNTIME_GENERATE_ROUNDS_H_

#include <functional>
#include <vector>

#include "runtime/generate/drafting.h"
#include "runtime/generate/drafting_pays.h"

namespace kvctl {

/*! \brief Prefills texts and runs rounds over them; their sequences are in the runner's cache. */
class Rounds {
 public:
  /*! \param adapts Whether rounds draft only while that pays. */
  Rounds(ModelRunner* runner, Drafting* drafting, const Decider& decider, bool adapts)
      : runner_(runner), drafting_(drafting), decider_(decider), adapts_(adapts) {}

  /*!
   * \brief Forwards prompts, and emits the first token of each text.
   * \return Whether there was room; without it nothing has changed.
   */
  bool Prefill(const std::vector<TextState*>& texts);
  /*!
   * \brief Forwards the tokens of a text again whose sequence had to leave the cache.
   * \return Whether there was room; without it nothing has changed.
   */
  bool Replay(TextState* text);
  /*!
   * \brief Runs a round.
   * \param leave Takes a text out of the cache for which there is no room; the last ones first. It
   * emits nothing then.
   */
  void Run(const std::vector<TextState*>& texts, const std::function<void(TextState*)>& leave);

 private:
  struct Forwarded;
  bool Drafts(const std::vector<TextState*>& texts);
  Forwarded Forward(const std::vector<Share>& shares);
  Forwarded ForwardWhatFits(std::vector<Share>* shares,
                            const std::function<void(TextState*)>& leave);

  ModelRunner* runner_;
  Drafting* drafting_;
  Decider decider_;
  bool adapts_;
  DraftingPays pays_;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_GENERATE_ROUNDS_H_
