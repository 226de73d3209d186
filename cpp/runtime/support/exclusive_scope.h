/*!
 * \file runtime/support/exclusive_scope.h
 * \brief Exclusive use of an object: a second caller is refused instead of made to wait.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_EXCLUSIVE_SCOPE_H_
#define KVCTL_RUNTIME_SUPPORT_EXCLUSIVE_SCOPE_H_

#include <atomic>

#include "kvctl/error.h"

namespace kvctl {

/*! \brief Exclusive use of an object from construction to destruction. */
class ExclusiveScope {
 public:
  /*!
   * \brief Takes the object if it is free; entered() says whether it was.
   * \param busy The object's flag: whether somebody uses it.
   */
  explicit ExclusiveScope(std::atomic<bool>* busy)
      : busy_(busy->exchange(true, std::memory_order_acquire) ? nullptr : busy) {}
  /*!
   * \brief Takes the object.
   * \param refusal The message for a caller who comes while another one uses the object.
   * \throws Error kRuntime with that message.
   */
  ExclusiveScope(std::atomic<bool>* busy, const char* refusal) : ExclusiveScope(busy) {
    if (!entered()) Throw(ErrorKind::kRuntime, refusal);
  }
  ~ExclusiveScope() {
    if (entered()) busy_->store(false, std::memory_order_release);
  }
  ExclusiveScope(const ExclusiveScope&) = delete;
  ExclusiveScope& operator=(const ExclusiveScope&) = delete;

  bool entered() const { return busy_ != nullptr; }

 private:
  std::atomic<bool>* busy_;  // null if another caller has the object
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_EXCLUSIVE_SCOPE_H_
