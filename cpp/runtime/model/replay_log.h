/*!
 * \file runtime/model/replay_log.h
 * \brief The tokens that the sequences of a model with recurrent layers may have to run again.
 */
#ifndef KVCTL_RUNTIME_MODEL_REPLAY_LOG_H_
#define KVCTL_RUNTIME_MODEL_REPLAY_LOG_H_

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace kvctl {

/*! \brief The tokens of one sequence. */
struct SequenceTokens {
  std::vector<int32_t> committed;
  std::vector<int32_t> pending;
  /*!
   * \brief Committed tokens up to the last one that ran under a mask or at positions of its own:
   * what has to run again must lie behind it.
   */
  int64_t special = 0;
  bool pending_special = false;

  /*! \brief The first `count` tokens, pending ones counted. */
  SequenceTokens First(int64_t count) const;
  /*! \brief The tokens after a commit of pending nodes. */
  SequenceTokens Kept(const std::vector<int32_t>& path) const;
  /*! \brief Adds the tokens of a forward; `are_pending` says what became of them. */
  void Append(const int32_t* tokens, int64_t count, bool are_pending, bool are_special);
};

/*! \brief What a runner has forwarded, of the sequences that it added itself. */
struct ReplayLog {
  std::unordered_map<int64_t, SequenceTokens> sequences;
  int64_t replayed = 0;  //!< how many tokens have run again
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_MODEL_REPLAY_LOG_H_
