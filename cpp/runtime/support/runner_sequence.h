/*!
 * \file runtime/support/runner_sequence.h
 * \brief Whether a model has a sequence, and room for one more or for more tokens.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_RUNNER_SEQUENCE_H_
#define KVCTL_RUNTIME_SUPPORT_RUNNER_SEQUENCE_H_

#include <cstdint>
#include <exception>

#include "kvctl/error.h"
#include "kvctl/model_runner.h"

namespace kvctl {

/*! \brief Whether a model's cache or its recurrent state has a sequence. */
inline bool HasSequence(const ModelRunner& runner, int64_t seq_id) {
  if (runner.cache().defined()) return runner.cache()->HasSequence(seq_id);
  return runner.state()->HasSequence(seq_id);
}

/*! \brief Whether AddSequence failed because there are as many sequences as the cache (kValue) or
 * the state (kRuntime) was made for. */
inline bool IsFull(const std::exception& caught) {
  const ErrorKind kind = AsError(caught).kind();
  return kind == ErrorKind::kValue || kind == ErrorKind::kRuntime;
}

/*! \brief Whether an exception says that too few pages are free. */
inline bool IsOutOfPages(const std::exception& caught) {
  return AsError(caught).kind() == ErrorKind::kOutOfPages;
}

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_RUNNER_SEQUENCE_H_
