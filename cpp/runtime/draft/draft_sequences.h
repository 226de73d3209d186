/*!
 * \file runtime/draft/draft_sequences.h
 * \brief The sequences of a draft model: kept in step with the texts that are drafted for.
 */
#ifndef KVCTL_RUNTIME_DRAFT_DRAFT_SEQUENCES_H_
#define KVCTL_RUNTIME_DRAFT_DRAFT_SEQUENCES_H_

#include <cstdint>
#include <limits>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "kvctl/generate.h"

namespace kvctl {

/*!
 * \brief A sequence of the draft model's cache for each text.
 *
 * A sequence holds the first tokens of its text, perhaps not all: CatchUp appends what is missing.
 * While a chain is drafted, its nodes are pending; Keep commits those that were accepted. A text
 * for which there is no room has no sequence; it gets one when another text has finished.
 */
class ModelDrafter::Sequences {
 public:
  explicit Sequences(ModelRunner* runner);
  ~Sequences();  //!< removes what is left
  Sequences(const Sequences&) = delete;
  Sequences& operator=(const Sequences&) = delete;

  /*!
   * \brief Appends the tokens that sequences lack, the roots too.
   * \param texts Those for which there is no room are taken out.
   * \return (texts, vocabulary) what the model says after the roots; null if no text is left.
   */
  tvm::runtime::Tensor CatchUp(std::vector<const Request*>* texts);
  /*!
   * \brief Forwards one more node of each chain, which becomes pending.
   * \return (texts, vocabulary); null, and nothing has changed, where there is no room.
   */
  tvm::runtime::Tensor Grow(const std::vector<const Request*>& texts,
                            const std::vector<int32_t>& tokens);
  /*! \brief Commits the first pending nodes of each chain, those accepted, and drops the others. */
  void Keep(const std::vector<RoundResult>& results);
  /*! \brief Drops what is pending: a round was given up. */
  void DropPending(const std::vector<const Request*>& texts);
  /*! \brief Removes a text's sequence; others may have its room. */
  void Finish(const Request& request);

  /*! \brief How many nodes of a chain may be forwarded behind the root. */
  int64_t DepthRoom(const Request& request) const;
  std::optional<int64_t> IdOf(const Request& request) const;
  int64_t LengthOf(const Request& request) const;
  int64_t vocab_size() const { return runner_->vocab_size(); }

 private:
  struct Sequence {
    int64_t id;
    int64_t length = 0;  // committed tokens
    int32_t pending = 0;
  };
  bool Enter(const Request& request);
  void Leave(const Request& request);

  ModelRunner* runner_;
  int64_t context_window_;
  std::unordered_map<int64_t, Sequence> sequences_;  // by Request::id
  std::unordered_set<int64_t> crowded_;              // texts for which there was no room
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_DRAFT_DRAFT_SEQUENCES_H_
