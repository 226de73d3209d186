/*!
 * \file runtime/generate/text_state.h
 * \brief One text while it is generated.
 */
#ifndef KVCTL_RUNTIME_GENERATE_TEXT_STATE_H_
#define KVCTL_RUNTIME_GENERATE_TEXT_STATE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "kvctl/generate.h"

namespace kvctl {

/*! \brief How many tokens a text may still have, and which limit that is. */
struct Room {
  int64_t tokens;
  FinishReason limit;
};

/*! \brief A text, what limits it, and why it ended. The cache holds all of it but its last token.
 */
class TextState {
 public:
  /*! \param options Of the call; they must live as long as this. */
  TextState(Request text, const Room& room, const GenerateOptions* options);

  /*!
   * \brief Shortens a round's tokens to those up to the first one that ends the text, and remembers
   * why it does.
   */
  void Cut(std::vector<int32_t>* emitted);
  /*! \brief Appends what Cut left; a text whose limit is reached has ended. */
  void Take(const std::vector<int32_t>& emitted, const std::vector<double>& log_probs);
  /*! \brief Calls the user's function with new tokens. */
  void Tell(const std::vector<int32_t>& emitted) const;
  /*! \brief The text that has ended. */
  Generation TakeGeneration();

  /*! \brief Whether any token was emitted yet. */
  bool begun() const { return static_cast<int64_t>(request.tokens.size()) > request.prompt_length; }
  bool ended() const { return finished_.has_value(); }
  int64_t room() const { return room_.tokens; }

  Request request;       //!< the text as a drafter sees it
  bool started = false;  //!< whether a drafter has started it
  Statistics statistics;

 private:
  Room room_;
  const GenerateOptions* options_;
  std::optional<FinishReason> finished_;
  std::vector<double> log_probs_;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_GENERATE_TEXT_STATE_H_
